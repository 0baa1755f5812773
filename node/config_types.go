package node

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"
)

// D returns d as the standard library's type.
func (d Duration) D() time.Duration { return time.Duration(d) }

// String writes d without zero parts: "15m", not "15m0s".
func (d Duration) String() string {
	s := time.Duration(d).String()
	if strings.HasSuffix(s, "m0s") {
		s = s[:len(s)-2]
	}
	if strings.HasSuffix(s, "h0m") {
		s = s[:len(s)-2]
	}
	return s
}

// MarshalText is String.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads what time.ParseDuration does.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return errors.New(`want a duration with its unit, as in "500ms", "1s", "15m" or "720h"`)
	}
	*d = Duration(v)
	return nil
}

// secretMask stands for a secret wherever one is printed.
const secretMask = "(set)"

// String masks the secret.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return secretMask
}

// GoString masks the secret in %#v.
func (s Secret) GoString() string { return fmt.Sprintf("node.Secret(%q)", s.String()) }

// Format masks the secret under every verb, %x and %d included.
func (s Secret) Format(f fmt.State, verb rune) {
	switch {
	case verb == 'v' && f.Flag('#'):
		fmt.Fprint(f, s.GoString())
	case verb == 'q':
		fmt.Fprintf(f, "%q", s.String())
	default:
		fmt.Fprint(f, s.String())
	}
}

// MarshalText masks the secret in every encoding that goes by text.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// LogValue masks the secret in logs.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

package authapi

import (
	"crypto/rand"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"
)

// Types of ids: an id is "<type>_" and a ULID in lower case.
const (
	idUser         = "usr"
	idOrganization = "org"
	idKey          = "key"
	idSession      = "ses"
	idEvent        = "evt"
	idToken        = "tok"
)

// newID makes an id of a type at a time.
func newID(kind string, now time.Time) string {
	// The only errors are those of the source, which has none, and of a year beyond 10889.
	return kind + "_" + strings.ToLower(ulid.MustNew(ulid.Timestamp(now), rand.Reader).String())
}

// formatTime renders Unix milliseconds as RFC 3339 in UTC, in whole seconds: every time that a client sees has this form.
func formatTime(millis int64) string {
	return time.UnixMilli(millis).UTC().Format(time.RFC3339)
}

// timeOrNull is formatTime for times that may be unset (0).
func timeOrNull(millis int64) *string {
	if millis == 0 {
		return nil
	}
	s := formatTime(millis)
	return &s
}

// parseTime reads RFC 3339 in any zone into Unix milliseconds.
func parseTime(s string) (millis int64, ok bool) {
	t, err := time.Parse(time.RFC3339, s)
	if err != nil || t.Year() < 1970 || t.Year() > 9999 {
		return 0, false
	}
	return t.UnixMilli(), true
}

// textOrNull is nil for "".
func textOrNull(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// plainID says whether s could be an id at all: everything else is not found without a look-up.
func plainID(s string) bool {
	if s == "" || len(s) > 64 {
		return false
	}
	for _, ch := range []byte(s) {
		if (ch < 'a' || ch > 'z') && (ch < '0' || ch > '9') && ch != '_' {
			return false
		}
	}
	return true
}

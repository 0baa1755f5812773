package authapi

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"net/http"
	"strconv"
	"strings"
	"time"

	"sluice/raftfsm/state"
)

// A one-time password is set by an operator for a user who cannot sign in. It opens nothing by itself: signing in with
// it takes the password that replaces it, so it is used once at most, and nobody goes on with one that an operator knows.
//
// In the user's record it stands where every password's hash does, as "once:<time>:<PHC string>", and works until that
// time, Unix milliseconds. So what compares and swaps the hash does so with this one too.
const (
	oneTimePrefix = "once:"
	// oneTimeLife is how long one works.
	oneTimeLife = 24 * time.Hour
)

// oneTimeHash is what the user's record holds of a one-time password.
func oneTimeHash(phc string, until int64) string {
	return oneTimePrefix + strconv.FormatInt(until, 10) + ":" + phc
}

// passwordOf is the PHC string of a user's password, "" where there is none that works now, and whether it is a one-time
// one.
func passwordOf(user *state.User, now time.Time) (hash string, once bool) {
	rest, once := strings.CutPrefix(user.PasswordHash, oneTimePrefix)
	if !once {
		return user.PasswordHash, false
	}
	text, hash, _ := strings.Cut(rest, ":")
	until, err := strconv.ParseInt(text, 10, 64)
	if err != nil || until <= now.UnixMilli() {
		return "", false
	}
	return hash, true
}

// newOneTimePassword makes one of 100 random bits, in groups that can be read out: no 0, 1, 8 or 9.
func newOneTimePassword() string {
	b := make([]byte, 15)
	rand.Read(b)
	text := strings.ToLower(base32.StdEncoding.EncodeToString(b))[:20]
	return text[:5] + "-" + text[5:10] + "-" + text[10:15] + "-" + text[15:]
}

// replaceOneTime puts the password that the request brings in the place of a one-time one that was right, and gives the
// hash that the sign-in goes by. Of an ordinary password it is the hash as it is.
func (c *call) replaceOneTime(ctx context.Context, user *state.User, once bool, req loginRequest) (string, error) {
	s := c.srv
	switch {
	case !once && req.NewPassword == "":
		return user.PasswordHash, nil
	case !once:
		return "", invalid("new_password", "is only for signing in with a one-time password")
	case req.NewPassword == "":
		return "", problem(http.StatusForbidden, "password_change_required", "this is a one-time password: send new_password with it")
	}
	if detail := checkPassword(req.NewPassword, user.Username, user.Email); detail != "" {
		return "", invalid("new_password", detail)
	}
	if req.NewPassword == req.Password {
		return "", invalid("new_password", "must not be the one-time password")
	}
	hash, err := s.passwords.hash(ctx, req.NewPassword)
	if err != nil {
		return "", err
	}
	_, err = s.propose(ctx, state.SetPassword{
		UserID: user.ID, OldHash: user.PasswordHash, NewHash: hash, At: c.now.UnixMilli(),
		Audit: []state.AuditEvent{by(user.ID, c.event("user.password_changed", user.PersonalOrg, kindUser, user.ID, "replaced", "one_time"))},
	})
	if refusedWith(err, state.CodeNotFound) || refusedWith(err, state.CodeConflict) {
		// Used by another request, replaced, or the account is gone or disabled.
		c.signInFailed(user)
		return "", errInvalidCredentials()
	}
	return hash, err
}

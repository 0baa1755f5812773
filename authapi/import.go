package authapi

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"

	"sluice/raftfsm/state"
)

const (
	// maxImportLine bounds a line of an import, in bytes.
	maxImportLine = 32 << 10
	// importBatch is how many bytes of rows go into one command at most, importRows how many rows.
	importBatch = 56 << 10
	importRows  = 512
	// importsAtOnce is how many commands are under way at a time: while Raft syncs some, others are applied. What is written beside
	// an import waits for so many to be applied.
	importsAtOnce = 16
	// maxImportErrors bounds what one answer tells of.
	maxImportErrors = 1000
)

// ImportReport says what became of the lines of an import.
type ImportReport struct {
	Lines  int `json:"lines"`
	Users  int `json:"users"`    // that were added
	Keys   int `json:"api_keys"` // that were added
	Exist  int `json:"exist"`    // that were there already
	Failed int `json:"failed"`   // that were not taken
	// Errors are the first 1,000 of these, by line.
	Errors []ImportError `json:"errors"`
}

// ImportError is why one line was not taken. It changed nothing.
type ImportError struct {
	Line   int    `json:"line"`
	Code   string `json:"code"` // "invalid_line", or one of the state machine's
	Detail string `json:"detail"`
}

// importLine is a line of an import. What an export writes of users and keys is in it, but for hashes.
type importLine struct {
	Type string `json:"type"`
	ID   string `json:"id"`

	Username     string `json:"username"`
	Email        string `json:"email"`
	PasswordHash string `json:"password_hash"`
	DisabledAt   string `json:"disabled_at"`

	Name           string         `json:"name"`
	Owner          string         `json:"owner"`
	OrganizationID string         `json:"organization_id"`
	SHA256         string         `json:"sha256"`
	Prefix         string         `json:"prefix"`
	Scopes         []string       `json:"scopes"`
	Environment    string         `json:"environment"`
	ExpiresAt      string         `json:"expires_at"`
	RateLimit      *rateLimitBody `json:"rate_limit"`

	CreatedAt string `json:"created_at"`
}

// importedRow is a line that can be proposed.
type importedRow struct {
	line int
	row  state.ImportRow
	size int
}

// Import takes users and keys from NDJSON, each line for itself: it is applied whole, or told of with its number, the
// first one's being firstLine. Users come before keys. The same lines may be sent again: what is there already is counted and
// left as it is. With dryRun nothing is changed. Lines are applied while later ones are read. Errors: the reader's,
// ErrUnavailable and ErrUnknown; then some lines may have been taken, and all can be sent again.
func (s *Server) Import(ctx context.Context, r io.Reader, firstLine int, dryRun bool) (ImportReport, error) {
	report := ImportReport{Errors: []ImportError{}}
	if !dryRun {
		err := s.applyImport(ctx, r, firstLine, &report)
		slices.SortStableFunc(report.Errors, func(a, b ImportError) int { return a.Line - b.Line })
		return report, err
	}
	var users, keys []importedRow
	err := s.readImport(r, firstLine, func(line importedRow, wrong string) error {
		report.Lines++
		switch {
		case wrong != "":
			report.fail(line.line, "invalid_line", wrong)
		case line.row.Key != nil:
			keys = append(keys, line)
		default:
			users = append(users, line)
		}
		return nil
	})
	for _, rows := range [][]importedRow{users, keys} {
		if err == nil {
			err = s.tryRows(rows, users, &report)
		}
	}
	return report, err
}

func (r *ImportReport) fail(line int, code, detail string) {
	r.Failed++
	if len(r.Errors) < maxImportErrors {
		r.Errors = append(r.Errors, ImportError{Line: line, Code: code, Detail: detail})
	}
}

// readImport gives what each line holds, in order: a row, or what is wrong with it.
func (s *Server) readImport(r io.Reader, firstLine int, each func(line importedRow, wrong string) error) error {
	lines := bufio.NewReaderSize(r, maxImportLine)
	for number := firstLine; ; number++ {
		text, err := lines.ReadSlice('\n')
		long := false
		for errors.Is(err, bufio.ErrBufferFull) {
			long = true
			_, err = lines.ReadSlice('\n')
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if text = bytes.TrimSpace(text); len(text) > 0 || long {
			line, detail := importedRow{line: number}, fmt.Sprintf("is longer than %d KiB", maxImportLine>>10)
			if !long {
				line.row, detail = s.importRow(text)
			}
			if detail == "" {
				encoded, wrong := state.Marshal(line.row)
				if wrong != nil {
					return fmt.Errorf("encode import: %w", wrong)
				}
				line.size = len(encoded)
			}
			if wrong := each(line, detail); wrong != nil {
				return wrong
			}
		}
		if err != nil {
			return nil
		}
	}
}

var importedID = regexp.MustCompile(`^(usr|key)_[0-7][0-9a-hjkmnp-tv-z]{25}$`)

// importRow makes a row of a line; detail says what is wrong with it.
func (s *Server) importRow(text []byte) (row state.ImportRow, detail string) {
	var l importLine
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&l); err != nil {
		return row, strings.TrimPrefix(err.Error(), "json: ")
	}
	if decoder.More() {
		return row, "holds more than one JSON object"
	}
	now := s.clock()
	var ok bool
	created := now.UnixMilli()
	if l.CreatedAt != "" {
		if created, ok = parseTime(l.CreatedAt); !ok || created <= 0 {
			return row, "created_at: must be a time as in RFC 3339"
		}
	}
	if l.ID != "" && (!importedID.MatchString(l.ID) || strings.HasPrefix(l.ID, "usr_") != (l.Type == "user")) {
		return row, "id: must be one of Sluice's own, of this kind; leave it out for a new one"
	}
	switch l.Type {
	case "user":
		user := state.User{ID: l.ID, PasswordHash: l.PasswordHash, CreatedAt: created, PersonalOrg: newID(idOrganization, now)}
		if user.ID == "" {
			user.ID = newID(idUser, now)
		}
		if user.Username, ok = normalUsername(l.Username); !ok {
			return row, "username: must have 3 to 32 characters of A-Z, a-z, 0-9, '.', '_' and '-'"
		}
		if user.Email, ok = normalEmail(l.Email); !ok {
			return row, "email: must be an e-mail address"
		}
		if l.PasswordHash != "" {
			if wrong := checkImportedHash(l.PasswordHash); wrong != "" {
				return row, "password_hash: " + wrong
			}
		}
		if l.DisabledAt != "" {
			if user.DisabledAt, ok = parseTime(l.DisabledAt); !ok || user.DisabledAt <= 0 {
				return row, "disabled_at: must be a time as in RFC 3339"
			}
		}
		if l.Owner != "" || l.OrganizationID != "" || l.SHA256 != "" || l.Prefix != "" || l.Scopes != nil || l.Environment != "" || l.ExpiresAt != "" || l.RateLimit != nil || l.Name != "" {
			return row, "has fields of a key"
		}
		org := state.Organization{ID: user.PersonalOrg, Name: user.Username, Personal: true, CreatedAt: created}
		return state.ImportRow{User: &user, Organization: &org}, ""
	case "api_key":
		if l.Username != "" || l.Email != "" || l.PasswordHash != "" || l.DisabledAt != "" {
			return row, "has fields of a user"
		}
		return s.importKeyRow(&l, created)
	case "":
		return row, `type: is missing: "user" or "api_key"`
	}
	return row, fmt.Sprintf("type: %q cannot be imported: only \"user\" and \"api_key\"", l.Type[:min(len(l.Type), 40)])
}

func (s *Server) importKeyRow(l *importLine, created int64) (row state.ImportRow, detail string) {
	key := state.APIKey{ID: l.ID, Name: strings.TrimSpace(l.Name), Prefix: l.Prefix, Environment: l.Environment, CreatedAt: created, OrganizationID: l.OrganizationID}
	if key.ID == "" {
		key.ID = newID(idKey, s.clock())
	}
	var err error
	if key.Hash, err = hex.DecodeString(l.SHA256); err != nil || len(key.Hash) != 32 {
		return row, "sha256: must be the SHA-256 of the key's text, 64 hexadecimal digits"
	}
	if key.Name == "" || len(key.Name) > 100 {
		return row, "name: must have 1 to 100 bytes"
	}
	if len(key.Prefix) > 32 || printable(key.Prefix) != key.Prefix {
		return row, "prefix: must have at most 32 characters"
	}
	var wrong string
	if key.Scopes, wrong = s.live.Load().checkScopes(l.Scopes); wrong != "" {
		return row, "scopes: " + wrong
	}
	switch key.Environment {
	case "":
		key.Environment = envLive
	case envLive, envTest:
	default:
		return row, `environment: must be "live" or "test"`
	}
	var ok bool
	if l.ExpiresAt != "" {
		if key.ExpiresAt, ok = parseTime(l.ExpiresAt); !ok || key.ExpiresAt <= 0 {
			return row, "expires_at: must be a time as in RFC 3339"
		}
	}
	if l.RateLimit != nil {
		if fields := checkRateLimit(*l.RateLimit); len(fields) > 0 {
			return row, fields[0].Field + ": " + fields[0].Detail
		}
		key.RateLimit, key.RateWindow = l.RateLimit.Limit, l.RateLimit.WindowSeconds
	}
	owner := ""
	switch {
	case (l.Owner == "") == (l.OrganizationID == ""):
		return row, "needs owner (a user name, for its personal organization) or organization_id, and not both"
	case l.Owner != "":
		if owner, ok = normalUsername(l.Owner); !ok {
			return row, "owner: is no user name"
		}
	case len(l.OrganizationID) > 64 || strings.IndexByte(l.OrganizationID, 0) >= 0:
		return row, "organization_id: is none"
	}
	return state.ImportRow{Key: &key, Owner: owner}, ""
}

// rowErrors says what the state machine's codes mean.
var rowErrors = map[byte]ImportError{
	state.RowUsernameTaken: {Code: "username_taken", Detail: "another user, with another e-mail address, has this name"},
	state.RowEmailTaken:    {Code: "email_taken", Detail: "another user has this e-mail address"},
	state.RowNoOwner:       {Code: "not_found", Detail: "there is no such owner or organization"},
	state.RowKeyTaken:      {Code: "conflict", Detail: "this key belongs to another organization, or was revoked or replaced"},
	state.RowConflict:      {Code: "conflict", Detail: "the id is taken"},
	state.RowInvalid:       {Code: "invalid_line", Detail: "it cannot be stored"},
}

func (r *ImportReport) count(item *importedRow, code byte) {
	switch {
	case code == state.RowExists:
		r.Exist++
	case code == state.RowDone && item.row.Key != nil:
		r.Keys++
	case code == state.RowDone:
		r.Users++
	default:
		e, known := rowErrors[code]
		if !known {
			e = ImportError{Code: "internal_error", Detail: "the cluster said something that this version does not know"}
		}
		r.fail(item.line, e.Code, e.Detail)
	}
}

// tryRows looks at what applyImport would say, by the state of now and the users of the same call.
func (s *Server) tryRows(rows, users []importedRow, report *ImportReport) error {
	coming := make(map[string]bool, len(users))
	for i := range users {
		coming[users[i].row.User.Username] = true
	}
	for i := range rows {
		code, err := s.tryRow(&rows[i].row, coming)
		if err != nil {
			return err
		}
		report.count(&rows[i], code)
	}
	return nil
}

func (s *Server) tryRow(row *state.ImportRow, coming map[string]bool) (byte, error) {
	if user := row.User; user != nil {
		old, err := s.state.UserByName(user.Username)
		switch {
		case err != nil:
			return 0, err
		case old != nil && old.Email == user.Email:
			return state.RowExists, nil
		case old != nil:
			return state.RowUsernameTaken, nil
		}
		if old, err = s.state.UserByEmail(user.Email); err != nil || old != nil {
			return state.RowEmailTaken, err
		}
		return state.RowDone, nil
	}
	key, org := row.Key, row.Key.OrganizationID
	if row.Owner != "" {
		owner, err := s.state.UserByName(row.Owner)
		switch {
		case err != nil:
			return 0, err
		case owner != nil:
			org = owner.PersonalOrg
		case coming[row.Owner]:
			return state.RowDone, nil
		default:
			return state.RowNoOwner, nil
		}
	}
	found, err := s.state.Organization(org)
	if err != nil || found == nil || found.DeletedAt != 0 {
		return state.RowNoOwner, err
	}
	auth, err := s.state.KeyAuth([32]byte(key.Hash))
	switch {
	case err != nil:
		return 0, err
	case auth == nil:
		return state.RowDone, nil
	case auth.Key.OrganizationID == org && auth.Key.RevokedAt == 0 && bytes.Equal(auth.Key.Hash, key.Hash):
		return state.RowExists, nil
	}
	return state.RowKeyTaken, nil
}

package authapi

import (
	"encoding/json"
	"io"

	"sluice/raftfsm/state"
)

// Export is where an export comes from: one moment of the state.
type Export interface {
	Users(fn func(*state.User) error) error
	Organizations(fn func(*state.Organization) error) error
	Members(fn func(*state.Membership) error) error
	Keys(fn func(*state.APIKey) error) error
}

type exportedUser struct {
	Type        string  `json:"type"`
	ID          string  `json:"id"`
	Username    string  `json:"username"`
	Email       string  `json:"email"`
	HasPassword bool    `json:"has_password"`
	CreatedAt   string  `json:"created_at"`
	DisabledAt  *string `json:"disabled_at"`
	PersonalOrg string  `json:"personal_organization_id"`
}

type exportedOrganization struct {
	Type      string  `json:"type"`
	ID        string  `json:"id"`
	Name      string  `json:"name"`
	Personal  bool    `json:"personal"`
	Plan      *string `json:"plan"`
	CreatedAt string  `json:"created_at"`
}

type exportedMember struct {
	Type           string `json:"type"`
	OrganizationID string `json:"organization_id"`
	UserID         string `json:"user_id"`
	Role           string `json:"role"`
	CreatedAt      string `json:"created_at"`
}

type exportedKey struct {
	Type           string         `json:"type"`
	ID             string         `json:"id"`
	Name           string         `json:"name"`
	OrganizationID string         `json:"organization_id"`
	CreatedBy      string         `json:"created_by"`
	Prefix         string         `json:"prefix"`
	Scopes         []string       `json:"scopes"`
	Environment    string         `json:"environment"`
	RateLimit      *rateLimitBody `json:"rate_limit"`
	CreatedAt      string         `json:"created_at"`
	ExpiresAt      *string        `json:"expires_at"`
	RevokedAt      *string        `json:"revoked_at"`
	RotatedAt      *string        `json:"rotated_at"`
}

// WriteExport writes users, organizations, members and keys as NDJSON, in this order and each by id: what they are, and nothing that
// opens anything, hashes included. Users and organizations that were deleted are left out; revoked keys are not, as what they did is
// in the audit log.
func WriteExport(w io.Writer, from Export) error {
	out := json.NewEncoder(w)
	out.SetEscapeHTML(false)
	if err := from.Users(func(u *state.User) error {
		if u.DeletedAt != 0 {
			return nil
		}
		return out.Encode(exportedUser{
			Type: "user", ID: u.ID, Username: u.Username, Email: u.Email, HasPassword: u.PasswordHash != "",
			CreatedAt: formatTime(u.CreatedAt), DisabledAt: timeOrNull(u.DisabledAt), PersonalOrg: u.PersonalOrg,
		})
	}); err != nil {
		return err
	}
	if err := from.Organizations(func(o *state.Organization) error {
		if o.DeletedAt != 0 {
			return nil
		}
		e := exportedOrganization{Type: "organization", ID: o.ID, Name: o.Name, Personal: o.Personal, CreatedAt: formatTime(o.CreatedAt)}
		if o.Plan != "" {
			e.Plan = &o.Plan
		}
		return out.Encode(e)
	}); err != nil {
		return err
	}
	if err := from.Members(func(m *state.Membership) error {
		return out.Encode(exportedMember{Type: "member", OrganizationID: m.OrganizationID, UserID: m.UserID, Role: m.Role, CreatedAt: formatTime(m.CreatedAt)})
	}); err != nil {
		return err
	}
	return from.Keys(func(k *state.APIKey) error {
		e := exportedKey{
			Type: "api_key", ID: k.ID, Name: k.Name, OrganizationID: k.OrganizationID, CreatedBy: k.CreatedBy, Prefix: k.Prefix, Scopes: k.Scopes,
			Environment: k.Environment, CreatedAt: formatTime(k.CreatedAt), ExpiresAt: timeOrNull(k.ExpiresAt), RevokedAt: timeOrNull(k.RevokedAt),
			RotatedAt: timeOrNull(k.RotatedAt),
		}
		if k.RateLimit > 0 && k.RateWindow > 0 {
			e.RateLimit = &rateLimitBody{Limit: k.RateLimit, WindowSeconds: k.RateWindow}
		}
		return out.Encode(e)
	})
}

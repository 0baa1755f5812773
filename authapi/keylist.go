package authapi

import (
	"net/http"
	"strings"
	"time"

	"sluice/raftfsm/state"
)

const (
	// keyPage is how many keys are read at once where a request looks at many.
	keyPage = 200
	// maxKeysLooked bounds the keys that a filtered page looks at; it is cut short there, with a cursor.
	maxKeysLooked = 5000
	// maxKeysCounted bounds the keys that statistics are made of.
	maxKeysCounted = 20_000
)

// usageOf reads what is known of the uses of keys.
func (s *Server) usageOf(keys []state.APIKey) ([]state.KeyUsage, error) {
	ids := make([]string, len(keys))
	for i := range keys {
		ids[i] = keys[i].ID
	}
	return s.state.KeyUsage(ids...)
}

// writeKey answers with a key as its managers see it.
func (c *call) writeKey(key *state.APIKey) error {
	usage, err := c.srv.state.KeyUsage(key.ID)
	if err != nil {
		return err
	}
	return c.writeJSON(http.StatusOK, newKeyBody(key, &usage[0], c.now))
}

// keyFilter selects keys of a list; zero fields select all.
type keyFilter struct {
	environment string
	name        string // part of the name, in lower case
	createdBy   string
	scope       string // what the key may do, by whichever of its scopes
	expired     *bool
}

// keyFilter reads the filters of a list, all mistakes at once.
func (c *call) keyFilter() (f keyFilter, err error) {
	f = keyFilter{environment: c.query("environment"), name: strings.ToLower(c.query("name")), createdBy: c.query("created_by"), scope: c.query("scope")}
	var wrong []FieldError
	add := func(bad bool, field, detail string) {
		if bad {
			wrong = append(wrong, FieldError{field, detail})
		}
	}
	add(f.environment != "" && f.environment != envLive && f.environment != envTest, "environment", `must be "live" or "test"`)
	add(len(f.name) > 4*nameMax, "name", "must have at most 100 characters")
	add(f.createdBy != "" && !plainID(f.createdBy), "created_by", "must be the id of a user or a key")
	add(f.scope != "" && !c.live.validScope(f.scope), "scope", "must be a scope")
	if expired := c.query("expired"); expired != "" {
		yes := expired == "true"
		f.expired = &yes
		add(!yes && expired != "false", "expired", "must be true or false")
	}
	return f, invalidFields(wrong)
}

func (f *keyFilter) selects(k *state.APIKey, now time.Time) bool {
	return (f.environment == "" || k.Environment == f.environment) &&
		(f.name == "" || strings.Contains(strings.ToLower(k.Name), f.name)) &&
		(f.createdBy == "" || k.CreatedBy == f.createdBy) &&
		(f.scope == "" || state.ScopeAllows(k.Scopes, f.scope)) &&
		(f.expired == nil || *f.expired == expiredAt(k, now))
}

func expiredAt(k *state.APIKey, now time.Time) bool {
	return k.ExpiresAt != 0 && k.ExpiresAt <= now.UnixMilli()
}

func handleListKeys(c *call) error {
	c.catchUpToRead()
	org := c.query("organization_id")
	if org == "" {
		org = c.principal.OrganizationID
	}
	if _, err := c.allow(opManageKeys, org); err != nil {
		return err
	}
	limit, after, err := c.pageArgs()
	if err != nil {
		return err
	}
	filter, err := c.keyFilter()
	if err != nil {
		return err
	}
	keys, next, err := c.selectKeys(org, after, limit, filter)
	if err != nil {
		return err
	}
	usage, err := c.srv.usageOf(keys)
	if err != nil {
		return err
	}
	list := make([]*keyBody, 0, len(keys))
	for i := range keys {
		list = append(list, newKeyBody(&keys[i], &usage[i], c.now))
	}
	return c.writePage(list, next)
}

// selectKeys is one page of a list; next is the cursor of the one after it, "" where there is none. A page that has
// looked at enough is cut short.
func (c *call) selectKeys(org, after string, limit int, filter keyFilter) (keys []state.APIKey, next string, err error) {
	for looked := 0; ; {
		page := min(limit+1, keyPage)
		if filter != (keyFilter{}) {
			page = keyPage
		}
		batch, err := c.srv.state.Keys(org, after, page)
		if err != nil {
			return nil, "", err
		}
		for i := range batch {
			if filter.selects(&batch[i], c.now) {
				if len(keys) == limit {
					return keys, keys[limit-1].ID, nil
				}
				keys = append(keys, batch[i])
			}
			after = batch[i].ID
		}
		looked += len(batch)
		switch {
		case len(batch) < page:
			return keys, "", nil
		case looked >= maxKeysLooked:
			return keys, after, nil
		}
	}
}

// keyStatsBody sums up an organization's keys.
type keyStatsBody struct {
	OrganizationID string  `json:"organization_id"`
	Keys           int     `json:"keys"` // that are not revoked
	Live           int     `json:"live"`
	Test           int     `json:"test"`
	Expired        int     `json:"expired"`
	NeverUsed      int     `json:"never_used"`
	UsedLastDay    int     `json:"used_last_day"`
	UsageCount     int64   `json:"usage_count"`
	LastUsedAt     *string `json:"last_used_at"`
	// Complete is false where the organization has more keys than are looked at.
	Complete bool `json:"complete"`
}

func handleKeyStats(c *call) error {
	org := c.param(0)
	c.catchUpToRead()
	if _, err := c.allow(opManageKeys, org); err != nil {
		return err
	}
	b := keyStatsBody{OrganizationID: org}
	lastUsed, after := int64(0), ""
	for b.Keys < maxKeysCounted && !b.Complete {
		keys, err := c.srv.state.Keys(org, after, keyPage)
		if err != nil {
			return err
		}
		usage, err := c.srv.usageOf(keys)
		if err != nil {
			return err
		}
		for i := range keys {
			b.count(&keys[i], &usage[i], c.now)
			lastUsed, after = max(lastUsed, usage[i].LastAt), keys[i].ID
		}
		b.Complete = len(keys) < keyPage
	}
	b.LastUsedAt = timeOrNull(lastUsed)
	return c.writeJSON(http.StatusOK, b)
}

func (b *keyStatsBody) count(k *state.APIKey, usage *state.KeyUsage, now time.Time) {
	b.Keys++
	if k.Environment == envTest {
		b.Test++
	} else {
		b.Live++
	}
	if expiredAt(k, now) {
		b.Expired++
	}
	switch {
	case usage.LastAt == 0:
		b.NeverUsed++
	case now.UnixMilli()-usage.LastAt < (24 * time.Hour).Milliseconds():
		b.UsedLastDay++
	}
	b.UsageCount += usage.Count
}

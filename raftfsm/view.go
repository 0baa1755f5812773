package raftfsm

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"github.com/dgraph-io/badger/v4"

	"sluice/raftfsm/state"
)

// View reads the state as of the last applied entry. Each call sees one moment of it and stays on it to its end, a
// restore beside it included. A missing entity is (nil, nil); an error means that the store failed, or ErrClosed. What
// is returned belongs to the caller. Ended, revoked and deleted entities are returned as they are.
// Safe for concurrent use; any number of Views of one FSM are the same.
type View struct{ fsm *FSM }

// View gives the read side of the state.
func (f *FSM) View() *View { return &View{fsm: f} }

// Epoch is FSM.Epoch.
func (v *View) Epoch() uint64 { return v.fsm.Epoch() }

// read runs fn on one moment of the state.
func (v *View) read(fn func(txn *badger.Txn) error) error {
	return v.readMoment(func(_ *handle, txn *badger.Txn) error { return fn(txn) })
}

// readMoment is read, with the database that it reads.
func (v *View) readMoment(fn func(h *handle, txn *badger.Txn) error) error {
	h, err := v.fsm.acquire()
	if err != nil {
		return err
	}
	defer h.release()
	reader := h.readers.take(h.db)
	defer h.readers.put(reader)
	return fn(h, reader.txn)
}

// find decodes the record at key; nil where it is missing.
func find[T any](txn *badger.Txn, key []byte) (*T, error) {
	entity := new(T)
	if found, err := findInto(txn, key, entity); err != nil || !found {
		return nil, err
	}
	return entity, nil
}

// findInto decodes the record at key into entity, which is as it was where there is none.
func findInto[T any](txn *badger.Txn, key []byte, entity *T) (found bool, err error) {
	item, err := txn.Get(key)
	if errors.Is(err, badger.ErrKeyNotFound) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read state: %w", err)
	}
	// Decoding copies what it keeps, so the value need not be.
	err = item.Value(func(value []byte) error { return state.Unmarshal(value, entity) })
	if err != nil {
		return false, fmt.Errorf("decode state: record %q: %w", key[:1], err)
	}
	return true, nil
}

// one reads a single record.
func one[T any](v *View, key []byte) (entity *T, err error) {
	err = v.read(func(txn *badger.Txn) error {
		entity, err = find[T](txn, key)
		return err
	})
	return entity, err
}

// each calls fn with what follows prefix in every key that begins with it and is after `after`, ascending, until fn
// returns false.
func each(txn *badger.Txn, prefix, after []byte, fn func(rest string) (bool, error)) error {
	options := badger.DefaultIteratorOptions
	options.PrefetchValues = false
	options.Prefix = prefix
	iterator := txn.NewIterator(options)
	defer iterator.Close()
	for iterator.Seek(after); iterator.Valid(); iterator.Next() {
		key := iterator.Item().Key()
		if bytes.Equal(key, after) {
			continue
		}
		more, err := fn(string(key[len(prefix):]))
		if err != nil || !more {
			return err
		}
	}
	return nil
}

// User finds a user by id.
func (v *View) User(id string) (*state.User, error) { return one[state.User](v, key1(prefixUser, id)) }

// UserByName finds a user by the exact, lower-case user name.
func (v *View) UserByName(username string) (*state.User, error) {
	return v.userBy(key1(prefixUserName, username))
}

// UserByEmail finds a user by the exact, normalised e-mail.
func (v *View) UserByEmail(email string) (*state.User, error) {
	return v.userBy(key1(prefixUserEmail, email))
}

func (v *View) userBy(index []byte) (user *state.User, err error) {
	err = v.read(func(txn *badger.Txn) error {
		id, err := read(txn, index)
		if err != nil || id == nil {
			return err
		}
		user, err = find[state.User](txn, key1(prefixUser, string(id)))
		return err
	})
	return user, err
}

// Organization finds an organization by id.
func (v *View) Organization(id string) (*state.Organization, error) {
	return one[state.Organization](v, key1(prefixOrg, id))
}

// Membership finds a user's membership of an organization.
func (v *View) Membership(organizationID, userID string) (*state.Membership, error) {
	return one[state.Membership](v, key2(prefixMember, organizationID, userID))
}

// MembershipsOf lists a user's memberships, by organization id.
func (v *View) MembershipsOf(userID string) (members []state.Membership, err error) {
	prefix := key2(prefixUserMember, userID, "")
	err = v.read(func(txn *badger.Txn) error {
		return each(txn, prefix, prefix, func(org string) (bool, error) {
			member, err := find[state.Membership](txn, key2(prefixMember, org, userID))
			if err == nil && member != nil {
				members = append(members, *member)
			}
			return true, err
		})
	})
	return members, err
}

// KeyByHash finds a key by the SHA-256 of its present or previous secret, revoked and expired ones too. LastUsedAt is not
// filled in: nobody who holds a secret asks, and it would be half of the cost.
func (v *View) KeyByHash(hash [32]byte) (key *state.APIKey, err error) {
	err = v.readMoment(func(h *handle, txn *badger.Txn) error {
		found := new(state.APIKey)
		if ok, err := keyByHash(h, txn, &hash, found); err != nil || !ok {
			return err
		}
		key = found
		return nil
	})
	return key, err
}

// keyByHash is View.KeyByHash. The record decides, not the index: a secret that is neither the present nor the previous one
// is dead, whatever still points to the key.
func keyByHash(h *handle, txn *badger.Txn, hash *[32]byte, key *state.APIKey) (found bool, err error) {
	for n := 0; ; n++ {
		id, ok, err := findHash(h, txn, hash, n)
		if err != nil || !ok {
			return false, err
		}
		found, err := findInto(txn, key1(prefixKey, id), key)
		if err != nil {
			return false, err
		}
		if found && (bytes.Equal(key.Hash, hash[:]) || bytes.Equal(key.PreviousHash, hash[:])) {
			return true, nil
		}
	}
}

// findHash is the n-th of the ids of keys that a hash may belong to.
func findHash(h *handle, txn *badger.Txn, hash *[32]byte, n int) (id string, ok bool, err error) {
	if h.keys.complete.Load() {
		id, ok = h.keys.find(hash[:], n)
		return id, ok, nil
	}
	if n > 0 {
		return "", false, nil
	}
	value, err := read(txn, key1(prefixKeyHash, string(hash[:])))
	return string(value), value != nil, err
}

// findKey loads a key with its last use.
func findKey(h *handle, txn *badger.Txn, id string) (*state.APIKey, error) {
	key, err := find[state.APIKey](txn, key1(prefixKey, id))
	if err != nil || key == nil {
		return nil, err
	}
	usage, err := findUsage(h, txn, id)
	if err != nil {
		return nil, err
	}
	key.LastUsedAt = usage.LastAt
	return key, nil
}

// findUsage loads a key's usage; zero where it was never used.
func findUsage(h *handle, txn *badger.Txn, id string) (state.KeyUsage, error) {
	usage, err := find[state.KeyUsage](txn, key1(prefixKeyUsage, id))
	switch {
	case err != nil:
		return state.KeyUsage{}, err
	case usage != nil:
		return *usage, nil // which began with what the older record says
	}
	if !h.touched.Load() {
		return state.KeyUsage{}, nil
	}
	used, err := read(txn, key1(prefixKeyUse, id))
	return state.KeyUsage{LastAt: timeOf(used)}, err
}

// KeyUsage finds what is known of the uses of keys, in the order of the ids; zero for a key that was never used.
func (v *View) KeyUsage(ids ...string) (list []state.KeyUsage, err error) {
	list = make([]state.KeyUsage, len(ids))
	err = v.readMoment(func(h *handle, txn *badger.Txn) error {
		for i, id := range ids {
			if list[i], err = findUsage(h, txn, id); err != nil {
				return err
			}
		}
		return nil
	})
	return list, err
}

// Key finds a key by id.
func (v *View) Key(id string) (key *state.APIKey, err error) {
	err = v.readMoment(func(h *handle, txn *badger.Txn) error {
		key, err = findKey(h, txn, id)
		return err
	})
	return key, err
}

// Keys lists an organization's keys that are not revoked, oldest first, after the id `after` ("" for the first page).
func (v *View) Keys(organizationID, after string, limit int) (keys []state.APIKey, err error) {
	if limit <= 0 {
		return nil, nil
	}
	prefix := key2(prefixOrgKey, organizationID, "")
	err = v.readMoment(func(h *handle, txn *badger.Txn) error {
		return each(txn, prefix, key2(prefixOrgKey, organizationID, after), func(id string) (bool, error) {
			key, err := findKey(h, txn, id)
			if err != nil {
				return false, err
			}
			if key != nil && key.RevokedAt == 0 {
				keys = append(keys, *key)
			}
			return len(keys) < limit, nil
		})
	})
	return keys, err
}

// Session finds a session by id.
func (v *View) Session(id string) (*state.Session, error) {
	return one[state.Session](v, key1(prefixSession, id))
}

// SessionsOf lists a user's live sessions, oldest first: those that have neither ended nor expired by the log's time.
func (v *View) SessionsOf(userID string) (sessions []state.Session, err error) {
	prefix := key2(prefixUserSession, userID, "")
	err = v.read(func(txn *badger.Txn) error {
		value, err := read(txn, keyApplied)
		if err != nil {
			return err
		}
		at, _ := decodeApplied(value)
		return each(txn, prefix, prefix, func(id string) (bool, error) {
			s, err := find[state.Session](txn, key1(prefixSession, id))
			if err == nil && s != nil && s.EndedAt == 0 && s.ExpiresAt > at.time {
				sessions = append(sessions, *s)
			}
			return true, err
		})
	})
	return sessions, err
}

// SigningKeys lists all that may still verify, oldest first; look at VerifiesTo. The last one is the newest.
func (v *View) SigningKeys() (keys []state.SigningKey, err error) {
	prefix := []byte{prefixSigningKey}
	err = v.read(func(txn *badger.Txn) error {
		return each(txn, prefix, prefix, func(rest string) (bool, error) {
			key, err := find[state.SigningKey](txn, append([]byte{prefixSigningKey}, rest...))
			if err == nil && key != nil {
				keys = append(keys, *key)
			}
			return true, err
		})
	})
	return keys, err
}

// ClusterSecrets is nil until the first leader has made them.
func (v *View) ClusterSecrets() (*state.ClusterSecrets, error) {
	return one[state.ClusterSecrets](v, keySecrets)
}

// Nodes lists what is known of all nodes, removed ones too, by id.
func (f *FSM) Nodes() ([]state.NodeInfo, error) {
	v := f.View()
	var nodes []state.NodeInfo
	err := v.read(func(txn *badger.Txn) error {
		prefix := []byte{prefixNode}
		return each(txn, prefix, prefix, func(id string) (bool, error) {
			node, err := find[state.NodeInfo](txn, key1(prefixNode, id))
			if err == nil && node != nil {
				nodes = append(nodes, *node)
			}
			return true, err
		})
	})
	return nodes, err
}

// auditScan is how many events one call of Audit looks at, at some 3 µs each: a filter that selects few out of a million
// takes many short calls rather than one long one.
const auditScan = 20_000

// Audit lists events, newest first, older than the event id `before` ("" for the newest). An event that is not there
// any more has nothing older: the oldest are removed first. next is what `before` has to be to go on, "" where the list
// ends here. The cost is that of the events passed over: those of one organization where the filter names one, and never
// those after filter.Until; after auditScan of them the page is cut short.
func (v *View) Audit(filter state.AuditFilter, before string, limit int) (events []state.AuditEvent, next string, err error) {
	if limit <= 0 {
		return nil, "", nil
	}
	prefix := []byte{prefixAudit}
	if filter.OrganizationID != "" {
		prefix = key2(prefixOrgAudit, filter.OrganizationID, "")
	}
	err = v.read(func(txn *badger.Txn) error {
		// Everything at or above top is left out. Times are below 1<<63, so 0xFF is above all of them.
		top := append(bytes.Clone(prefix), 0xFF)
		if filter.Until > 0 {
			top = appendTime(bytes.Clone(prefix), filter.Until)
		}
		if before != "" {
			at, err := read(txn, key1(prefixAuditTime, before))
			if err != nil || at == nil {
				return err
			}
			cursor := append(append(bytes.Clone(prefix), at...), before...)
			if bytes.Compare(cursor, top) < 0 {
				top = cursor
			}
		}
		options := badger.DefaultIteratorOptions
		options.PrefetchValues = false
		options.Reverse = true
		options.Prefix = prefix
		iterator := txn.NewIterator(options)
		defer iterator.Close()
		id := "" // of the event looked at last
		looked := 0
		for iterator.Seek(top); iterator.Valid(); iterator.Next() {
			key := iterator.Item().Key()
			if bytes.Compare(key, top) >= 0 {
				continue
			}
			rest := key[len(prefix):]
			if len(rest) < 8 {
				return fmt.Errorf("audit index is garbled: %x", key)
			}
			at := timeOf(rest)
			if at < filter.Since {
				return nil
			}
			if looked++; looked > auditScan {
				next = id
				return nil
			}
			id = string(rest[8:])
			event, err := find[state.AuditEvent](txn, keyTime(prefixAudit, at, id))
			switch {
			case err != nil:
				return err
			case event == nil || !selected(filter, event):
			case len(events) == limit:
				next = events[limit-1].ID
				return nil
			default:
				events = append(events, *event)
			}
		}
		return nil
	})
	return events, next, err
}

func selected(filter state.AuditFilter, event *state.AuditEvent) bool {
	if filter.ActorID != "" && event.ActorID != filter.ActorID ||
		filter.SubjectID != "" && event.SubjectID != filter.SubjectID ||
		filter.Result != "" && event.Result != filter.Result {
		return false
	}
	if group, ok := strings.CutSuffix(filter.Event, "*"); ok && strings.HasSuffix(group, ".") {
		return strings.HasPrefix(event.Event, group)
	}
	return filter.Event == "" || event.Event == filter.Event
}

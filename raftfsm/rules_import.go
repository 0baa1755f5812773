package raftfsm

import (
	"bytes"

	"sluice/raftfsm/state"
)

// maxImportRows bounds the rows of one command; the size of a command does so earlier for all but the smallest.
const maxImportRows = 512

// importAccounts looks at each row by itself. It never scans: a scan looks at all that the batch has changed.
func importAccounts(b *batch, c state.ImportAccounts) state.Result {
	if len(c.Rows) == 0 || len(c.Rows) > maxImportRows {
		return refuse(state.CodeInvalid)
	}
	rows := make([]byte, len(c.Rows))
	count := 0
	for i := range c.Rows {
		row := &c.Rows[i]
		switch {
		case row.User != nil && row.Key == nil && row.Organization != nil:
			rows[i] = importUser(b, row.User, row.Organization)
		case row.Key != nil && row.User == nil && row.Organization == nil:
			rows[i] = importKey(b, *row.Key, row.Owner)
		default:
			rows[i] = state.RowInvalid
		}
		if rows[i] == state.RowDone {
			count++
		}
	}
	return state.Result{Count: count, Rows: string(rows)}
}

func importUser(b *batch, user *state.User, org *state.Organization) byte {
	if !validID(user.ID) || !validName(user.Username) || !validName(user.Email) || len(user.PasswordHash) > maxName || user.DeletedAt != 0 ||
		!validID(org.ID) || user.PersonalOrg != org.ID || !org.Personal || len(org.Name) > maxName || org.DeletedAt != 0 {
		return state.RowInvalid
	}
	if id := b.get(key1(prefixUserName, user.Username)); id != nil {
		if old := load[state.User](b, key1(prefixUser, string(id))); old != nil && old.Email == user.Email {
			return state.RowExists
		}
		return state.RowUsernameTaken
	}
	switch {
	case b.has(key1(prefixUserEmail, user.Email)):
		return state.RowEmailTaken
	case b.has(key1(prefixUser, user.ID)), b.has(key1(prefixOrg, org.ID)):
		return state.RowConflict
	}
	b.store(key1(prefixUser, user.ID), user)
	b.put(key1(prefixUserName, user.Username), []byte(user.ID))
	b.put(key1(prefixUserEmail, user.Email), []byte(user.ID))
	owned := *org
	owned.CreatedBy = user.ID
	addOrg(b, owned, user.ID)
	return state.RowDone
}

func importKey(b *batch, key state.APIKey, owner string) byte {
	if !validID(key.ID) || len(key.Hash) != hashSize || len(key.PreviousHash) != 0 || !validName(key.Name) || len(key.Prefix) > maxName ||
		!validScopes(key.Scopes) || key.RevokedAt != 0 || key.CreatedBy != "" || (key.OrganizationID == "") == (owner == "") {
		return state.RowInvalid
	}
	if owner != "" {
		if !validName(owner) {
			return state.RowInvalid
		}
		id := b.get(key1(prefixUserName, owner))
		if id == nil {
			return state.RowNoOwner
		}
		user := load[state.User](b, key1(prefixUser, string(id)))
		if user == nil || user.DeletedAt != 0 {
			return state.RowNoOwner
		}
		// Which lives as long as the account does: no need to look at it.
		key.OrganizationID, key.CreatedBy = user.PersonalOrg, user.ID
	} else if !validID(key.OrganizationID) {
		return state.RowInvalid
	} else if org := liveOrg(b, key.OrganizationID); org == nil {
		return state.RowNoOwner
	} else {
		key.CreatedBy = org.CreatedBy
	}
	if id := b.get(key1(prefixKeyHash, string(key.Hash))); id != nil {
		old := load[state.APIKey](b, key1(prefixKey, string(id)))
		if old != nil && old.OrganizationID == key.OrganizationID && old.RevokedAt == 0 && bytes.Equal(old.Hash, key.Hash) {
			return state.RowExists
		}
		// A key that was revoked here must not come back by a repeated import.
		return state.RowKeyTaken
	}
	if b.has(key1(prefixKey, key.ID)) {
		return state.RowConflict
	}
	saveKey(b, &key)
	b.put(key1(prefixKeyHash, string(key.Hash)), []byte(key.ID))
	b.put(key2(prefixOrgKey, key.OrganizationID, key.ID), nil)
	return state.RowDone
}

func replacePassword(b *batch, c state.ReplacePassword) state.Result {
	user := activeUser(b, c.UserID)
	if user == nil || user.PasswordHash != c.OldHash || c.OldHash == "" {
		return refuse(state.CodeConflict)
	}
	if c.NewHash == "" || len(c.NewHash) > maxName {
		return refuse(state.CodeInvalid)
	}
	user.PasswordHash = c.NewHash
	b.store(key1(prefixUser, user.ID), user)
	return state.Result{}
}

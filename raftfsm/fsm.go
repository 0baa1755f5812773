package raftfsm

import (
	"fmt"

	"github.com/dgraph-io/badger/v4"
	"github.com/hashicorp/raft"

	"sluice/raftfsm/state"
)

var (
	_ raft.FSM                = (*FSM)(nil)
	_ raft.BatchingFSM        = (*FSM)(nil)
	_ raft.ConfigurationStore = (*FSM)(nil)
)

// Apply applies one entry. The value returned, and by the future's Response, is a state.Result, or an error where the
// FSM has failed or is closed.
func (f *FSM) Apply(entry *raft.Log) any { return f.ApplyBatch([]*raft.Log{entry})[0] }

// ApplyBatch applies consecutive entries in as few transactions as they fit in, each with the applied index of its last
// entry. Each element of the result is what Apply returns.
func (f *FSM) ApplyBatch(entries []*raft.Log) []any {
	answers := make([]any, len(entries))
	err := f.apply(entries, answers)
	if err != nil {
		for i := range answers {
			answers[i] = err
		}
	}
	return answers
}

// StoreConfiguration notes that a configuration entry was applied: without it the applied index would stay behind in a
// quiet cluster, and Raft would not take a snapshot.
func (f *FSM) StoreConfiguration(index uint64, _ raft.Configuration) {
	// The answer is not used by anyone; a failure has gone to Config.Fatal.
	f.Apply(&raft.Log{Index: index, Term: f.at.term, Type: raft.LogConfiguration})
}

func (f *FSM) apply(entries []*raft.Log, answers []any) error {
	if f.failed.Load() {
		return ErrFailed
	}
	h, err := f.acquire()
	if err != nil {
		return err
	}
	defer h.release()
	if !f.room() {
		return ErrFailed
	}
	if err := f.applyTo(h, entries, answers); err != nil {
		f.fail(fmt.Errorf("apply: %w", err))
		return fmt.Errorf("%w: %w", ErrFailed, err)
	}
	return nil
}

func (f *FSM) applyTo(h *handle, entries []*raft.Log, answers []any) error {
	db := h.db
	// Half of what Badger allows, since its own count differs from ours by some bytes an entry.
	maxSize, maxCount := int(db.MaxBatchSize()/2), int(db.MaxBatchCount()/2)
	b := newBatch(db, f.at)
	defer func() { b.discard() }()
	last := f.at // of the last entry that is in b.done
	pending := false
	flush := func() error {
		if !pending {
			return nil
		}
		if err := b.commit(db, last); err != nil {
			return err
		}
		pending = false
		if f.unlooked += b.size; f.unlooked >= memtableLook {
			f.unlooked = 0
			f.reserveMemtables(h.dir)
		}
		return f.publish(h, b, last)
	}
	for i, entry := range entries {
		if entry.Index <= last.index {
			// Raft replays its log from the last snapshot after a start; this entry is in the state already.
			answers[i] = state.Result{Index: entry.Index}
			continue
		}
		b.at = applied{index: entry.Index, term: entry.Term, time: last.time}
		result := state.Result{Index: entry.Index}
		if entry.Type == raft.LogCommand {
			envelope, err := state.Decode(entry.Data)
			if err != nil {
				// What came before is good: it is kept, so that the next start stops at this same entry.
				return fmt.Errorf("entry %d: %w", entry.Index, orFirst(flush(), err))
			}
			result = f.command(b, envelope)
			if b.err != nil {
				return fmt.Errorf("entry %d: %w", entry.Index, b.err)
			}
		}
		size, count := b.cmdSize()
		if pending && (b.size+size > maxSize || len(b.done)+count > maxCount) {
			// The finished entries go first. This one's changes were made on top of them, so they hold.
			b2 := newBatchFrom(b)
			if err := flush(); err != nil {
				return err
			}
			b.discard()
			b2.txn = db.NewTransaction(false)
			b = b2
		}
		b.keep()
		last, pending = b.at, true
		answers[i] = result
	}
	return flush()
}

func orFirst(err, other error) error {
	if err != nil {
		return err
	}
	return other
}

// publish makes what was committed known, in the order that readers rely on: state (committed), epoch, applied index.
func (f *FSM) publish(h *handle, b *batch, at applied) error {
	f.at = at
	h.committed(b.done)
	if b.renamed {
		txn := h.db.NewTransaction(false)
		resets, err := readResets(txn)
		txn.Discard()
		if err != nil {
			return err
		}
		f.resets.Store(&resets) // before the horizon, see Resets
	}
	if b.settled {
		txn := h.db.NewTransaction(false)
		settings, err := readSettings(txn)
		level := uint64(1)
		if err == nil {
			level, err = readLevel(txn)
		}
		txn.Discard()
		if err != nil {
			return err
		}
		f.level.Store(level)
		f.settings.Store(&settings) // likewise
	}
	if b.rekeyed {
		txn := h.db.NewTransaction(false)
		keyring, err := readGossipKeyring(txn)
		txn.Discard()
		if err != nil {
			return err
		}
		f.keyring.Store(keyring)
	}
	if b.announced {
		limiter := new(state.LimiterState)
		value, err := readOne(h.db, keyLimiter)
		if err != nil {
			return err
		}
		if value != nil {
			if err := state.Unmarshal(value, limiter); err != nil {
				return fmt.Errorf("decode limiter state: %w", err)
			}
		}
		f.limiter.Store(limiter)
	}
	if b.raised {
		f.epoch.Add(1)
	}
	f.index.Store(at.index)
	f.waiting.wake(at.index)
	if b.announced {
		f.announce()
	}
	return nil
}

// committed makes reads from now on see what was committed. The index goes first: who finds a key there that its
// transaction does not know reads as if the key had not been made yet.
func (h *handle) committed(changes map[string][]byte) {
	for key, value := range changes {
		switch {
		case key[0] == prefixKeyUse:
			h.touched.Store(true)
		case key[0] != prefixKeyHash:
		case value == nil:
			h.keys.remove([]byte(key[1:]))
		default:
			h.keys.add([]byte(key[1:]), value)
		}
	}
	h.readers.committed()
}

func readOne(db *badger.DB, key []byte) ([]byte, error) {
	txn := db.NewTransaction(false)
	defer txn.Discard()
	return read(txn, key)
}

// command applies one command to the batch. Refusals and repetitions change nothing but what goes with the entry itself
// (the FSM's time, the record of its request id).
func (f *FSM) command(b *batch, e state.Envelope) state.Result {
	b.at.time = max(b.at.time, e.ProposedAt)
	remember := remembers(e)
	if remember {
		if first, ok := f.requests.first(b, e.RequestID); ok {
			return first
		}
	}
	result := f.dispatch(b, e.Command)
	result.Index = b.at.index
	if result.Refused != "" || result.Replay != nil {
		b.drop()
	}
	// An answer given again is found by its idempotency record as well as by the request id, and may be large.
	if remember && result.Replay == nil {
		f.requests.record(b, e.RequestID, result)
	}
	f.requests.expire(b)
	return result
}

func (f *FSM) dispatch(b *batch, command state.Command) state.Result {
	switch c := command.(type) {
	case state.InitCluster:
		return initCluster(b, c)
	case state.RegisterUser:
		return registerUser(b, c)
	case state.CreateSession:
		return createSession(b, c)
	case state.RefreshSession:
		return refreshSession(b, c)
	case state.EndSession:
		return endSession(b, c)
	case state.EndSessions:
		return endSessions(b, c)
	case state.SetPassword:
		return setPassword(b, c)
	case state.CreateOrg:
		return createOrg(b, c)
	case state.CreateKey:
		return createKey(b, c)
	case state.UpdateKey:
		return updateKey(b, c)
	case state.RotateKey:
		return rotateKey(b, c)
	case state.RevokeKey:
		return revokeKey(b, c)
	case state.TouchKeys:
		return touchKeys(b, c)
	case state.AppendAudit:
		return appendAudit(b, c)
	case state.PutSigningKey:
		return putSigningKey(b, c)
	case state.Prune:
		return prune(b, &f.requests, c)
	case state.Horizon:
		return horizon(b, c)
	case state.SetRoster:
		return setRoster(b, c)
	case state.ResetBucket:
		return resetBucket(b, c)
	case state.Leave:
		return leave(b, c)
	case state.PutNode:
		return putNode(b, c)
	case state.Barrier:
		return state.Result{}
	case state.UpdateOrg:
		return updateOrg(b, c)
	case state.DeleteOrg:
		return deleteOrg(b, c)
	case state.AddMember:
		return addMember(b, c)
	case state.UpdateMember:
		return updateMember(b, c)
	case state.RemoveMember:
		return removeMember(b, c)
	case state.TransferOrg:
		return transferOrg(b, c)
	case state.SetPlan:
		return setPlan(b, c)
	case state.DeleteUser:
		return deleteUser(b, c)
	case state.SetUserDisabled:
		return setUserDisabled(b, c)
	case state.RecordKeyUse:
		return recordKeyUse(b, c)
	case state.RevokeKeyBySecret:
		return revokeKeyBySecret(b, c)
	case state.UseOnce:
		return useOnce(b, c)
	case state.RegisterIdentity:
		return registerIdentity(b, c)
	case state.StartSession:
		return startSession(b, c)
	case state.SignInByIdentity:
		return signInByIdentity(b, c)
	case state.LinkIdentity:
		return linkIdentity(b, c)
	case state.UnlinkIdentity:
		return unlinkIdentity(b, c)
	case state.RecoverCluster:
		return recoverCluster(b, c)
	case state.PutSettings:
		return putSettings(b, c)
	case state.PutGossipKeyring:
		return putGossipKeyring(b, c)
	case state.ImportAccounts:
		return importAccounts(b, c)
	case state.RaiseLevel:
		return raiseLevel(b, c)
	case state.ReplacePassword:
		return replacePassword(b, c)
	case state.RotateSecretsKey:
		return rotateSecretsKey(b, c)
	case state.Reseal:
		return reseal(b, c)
	}
	b.fail(fmt.Errorf("%w: %T has no rule", state.ErrUnknownCommand, command))
	return state.Result{}
}

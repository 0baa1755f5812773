package limiter

// Algorithm says how a limit is spread over time. The numbers are part of a bucket's identity and of the wire format:
// never change or reuse one.
type Algorithm uint8

const (
	// FixedWindow admits at most Limit units in each window [n·W, (n+1)·W) of Unix time.
	FixedWindow Algorithm = 1
	// SlidingWindow also counts what is still in view of the window before: used(n) + w·used(n−1) ≤ Limit.
	SlidingWindow Algorithm = 2
	// TokenBucket holds Burst units when full and gains Limit units in Window seconds, evenly: at most
	// Burst + Limit · t / Window units pass in any time t.
	TokenBucket Algorithm = 3
)

// Rule is a limit: at most Limit units in any window of Window seconds, in the sense of Algorithm.
type Rule struct {
	Limit     int64 // units, 0 (nothing passes) to 1e12
	Window    int64 // seconds, 1 to 2,678,400 (31 days)
	Algorithm Algorithm
	Burst     int64 // of a TokenBucket: what it holds when full, in units, 1 to 1e12; else 0
}

// BucketID names a bucket: a keyed 128-bit hash of (policy, window, algorithm, subject), the same on every node. It
// does not depend on limit and burst, so that these may change while the bucket is in use.
type BucketID [16]byte

// Charge is what one policy takes for one request.
type Charge struct {
	Bucket BucketID
	Rule   Rule
	Cost   int64 // units, at least 1

	// id is the bucket's name as the decision found it: a reset gives it another one.
	id BucketID
	// charged is 1 + the window that Take charged, or which token bucket it was (tokens.birth); 0 for none. It tells Refund
	// where the units belong, however late it comes, and makes a second Refund of the same Charge harmless.
	charged int64
	// roomUntil is the value of tokens.filled up to which a token bucket has room for what a refund gives back.
	roomUntil int64
}

// Outcome of a decision.
type Outcome uint8

const (
	// Admitted: every bucket was charged.
	Admitted Outcome = 1
	// Refused: at least one limit is exhausted; nothing was charged.
	Refused Outcome = 2
	// Undecided: this node cannot decide now without risking the limit (its horizon has passed, its mark is behind, it
	// knows no roster); nothing was charged. Answer 503.
	Undecided Outcome = 3
)

// Verdict is one policy's part of a decision, and what the response's headers say.
type Verdict struct {
	Outcome    Outcome // of this policy alone
	Limit      int64
	Remaining  int64 // units left in the cluster as far as this node knows, at least 0; of a TokenBucket up to Burst
	ResetAt    int64 // Unix seconds: the end of the present window, or when a TokenBucket will be full if nothing more is spent
	RetryAfter int64 // whole seconds, at least 1, until a request of this cost may pass; 0 where it may now
	Waited     bool  // the decision waited for a message
}

// Isolation says what a node does in windows that begin beyond its horizon.
type Isolation uint8

const (
	// Strict answers Undecided there: a node cut off from the cluster's log opens no new window. The limit holds always.
	Strict Isolation = 0
	// Available goes on with the base share of the newest roster known. The excess is at most the base shares of the
	// nodes that are cut off.
	Available Isolation = 1
)

// Roster is one version of the list of nodes that hold shares. It governs the windows that begin at or after
// FromMillis, up to the next roster's.
type Roster struct {
	Index      uint64 // of its log entry; a later roster's is greater
	FromMillis int64  // Unix milliseconds: the greatest horizon before it in the log; 0 for the first of a cluster
	Nodes      []string
}

// Reset is the present generation of a bucket.
type Reset struct {
	Bucket     BucketID // as Limiter.Bucket names it
	Generation uint64   // the index of the log entry that reset it
	// UntilMillis, if not 0, is when that generation ends: windows that begin then or later (Unix milliseconds) count
	// under the first name again. It must be the greatest horizon before its entry in the log.
	UntilMillis int64
	// EarlierMillis is the greatest UntilMillis of the generations before, 0 for none.
	EarlierMillis int64
}

// Leave says that a node left for good and who has its shares now.
type Leave struct {
	Index      uint64 // of its log entry; a later leave's is greater
	Leaver     string
	Heir       string   // it may have left since: then its own heir has these shares as well
	MarkMillis int64    // the leaver acted in no window that begins later
	List       [32]byte // names the list that the heir stored (Bequest.List)
}

// State is the part of the replicated state that the ledger goes by. Horizon, rosters and leaves must be read at one log
// index, resets at that one or a later.
type State struct {
	// HorizonMillis is the newest horizon applied here, in Unix milliseconds: a node has a base share only in windows
	// that begin before it.
	HorizonMillis int64
	// Rosters, oldest first; every one that governs a window that may be open, or the one before it.
	Rosters []Roster
	// Resets that are in force, one for a bucket, in the same order each time.
	Resets []Reset
	// Leaves, oldest first; every one whose leaver is in one of the rosters, or is the heir of one.
	Leaves []Leave
}

// Transport carries packets to other nodes: best effort, so loss, repetition and reordering are expected.
type Transport interface {
	// Send hands packet (at most MaxPacket bytes) to node. It must not block and must not keep packet. It is called from
	// any goroutine, never with a lock held.
	Send(node string, packet []byte)
}

// MaxPacket is the greatest length of a packet that the limiter sends.
const MaxPacket = 1200

package state

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/fxamacker/cbor/v2"
)

// MaxCommandSize is the largest encoded command in bytes, header included. Raft's heartbeats share the connection with
// entries, so that a large one can cost an election; what does not fit is split by the proposer.
const MaxCommandSize = 64 << 10

// MaxResultSize bounds an encoded Result; the largest part of one is a replayed answer.
const MaxResultSize = 128 << 10

// maxElements is how long an array in a record or command can be.
const maxElements = 4096

// codecVersion is the first byte of every command and result. A change of the layout takes the next number.
const codecVersion = 1

// Layout of a command: version (1), type (2, big endian), request id (16), proposed at (8, big endian), CBOR payload.
const headerSize = 1 + 2 + 16 + 8

// Errors of the codec. None of them goes away by trying again with the same bytes.
var (
	// ErrUnknownCommand: the bytes were written by a newer version (another layout, or a command type that this one
	// does not have). A node that finds them in its log must stop: going on without them would make replicas differ.
	ErrUnknownCommand = errors.New("unknown command version or type")
	// ErrMalformed: the bytes are not what Encode writes.
	ErrMalformed = errors.New("malformed command")
	// ErrTooLarge: the command does not fit MaxCommandSize, the result not MaxResultSize.
	ErrTooLarge = errors.New("command too large")
)

var (
	encMode = newEncMode()
	decMode = newDecMode()
)

func newEncMode() cbor.EncMode {
	options := cbor.CoreDetEncOptions()
	// Nil and empty mean the same everywhere here; equal states must not differ in bytes by which one a caller used.
	options.NilContainers = cbor.NilContainerAsEmpty
	mode, err := options.EncMode()
	if err != nil {
		panic(err) // constant options
	}
	return mode
}

func newDecMode() cbor.DecMode {
	mode, err := cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		IndefLength:       cbor.IndefLengthForbidden,
		TagsMd:            cbor.TagsForbidden,
		MaxNestedLevels:   8,
		MaxArrayElements:  maxElements,
		MaxMapPairs:       64,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
	}.DecMode()
	if err != nil {
		panic(err) // constant options
	}
	return mode
}

// Marshal encodes an entity of this package deterministically: equal values give equal bytes, nil and empty slices alike.
func Marshal(v any) ([]byte, error) { return encMode.Marshal(v) }

// Unmarshal decodes what Marshal wrote into v, which is zero. Unknown fields, duplicate keys and trailing bytes are errors. v shares no
// memory with data.
func Unmarshal(data []byte, v any) error {
	record, ok := v.(flat)
	if !ok {
		return decMode.Unmarshal(data, v)
	}
	if unmarshalFlat(data, record) {
		return nil
	}
	record.clear()
	return decMode.Unmarshal(data, v)
}

// decoders has one entry for each command: it decodes the payload into a value of the command's type.
var decoders = map[uint16]func([]byte) (Command, error){
	TypeInitCluster:    decodeAs[InitCluster],
	TypeRegisterUser:   decodeAs[RegisterUser],
	TypeCreateSession:  decodeAs[CreateSession],
	TypeRefreshSession: decodeAs[RefreshSession],
	TypeEndSession:     decodeAs[EndSession],
	TypeEndSessions:    decodeAs[EndSessions],
	TypeCreateOrg:      decodeAs[CreateOrg],
	TypeCreateKey:      decodeAs[CreateKey],
	TypeUpdateKey:      decodeAs[UpdateKey],
	TypeRotateKey:      decodeAs[RotateKey],
	TypeRevokeKey:      decodeAs[RevokeKey],
	TypeTouchKeys:      decodeAs[TouchKeys],
	TypeAppendAudit:    decodeAs[AppendAudit],
	TypePutSigningKey:  decodeAs[PutSigningKey],
	TypePrune:          decodeAs[Prune],
	TypeHorizon:        decodeAs[Horizon],
	TypeSetRoster:      decodeAs[SetRoster],
	TypePutNode:        decodeAs[PutNode],
	TypeBarrier:        decodeAs[Barrier],
	TypeSetPassword:    decodeAs[SetPassword],
	TypeResetBucket:    decodeAs[ResetBucket],
	TypeLeave:          decodeAs[Leave],

	TypeUpdateOrg:       decodeAs[UpdateOrg],
	TypeDeleteOrg:       decodeAs[DeleteOrg],
	TypeAddMember:       decodeAs[AddMember],
	TypeUpdateMember:    decodeAs[UpdateMember],
	TypeRemoveMember:    decodeAs[RemoveMember],
	TypeTransferOrg:     decodeAs[TransferOrg],
	TypeSetPlan:         decodeAs[SetPlan],
	TypeDeleteUser:      decodeAs[DeleteUser],
	TypeSetUserDisabled: decodeAs[SetUserDisabled],

	TypeRecordKeyUse:      decodeAs[RecordKeyUse],
	TypeRevokeKeyBySecret: decodeAs[RevokeKeyBySecret],

	TypeUseOnce:          decodeAs[UseOnce],
	TypeRegisterIdentity: decodeAs[RegisterIdentity],
	TypeSignInByIdentity: decodeAs[SignInByIdentity],
	TypeLinkIdentity:     decodeAs[LinkIdentity],
	TypeUnlinkIdentity:   decodeAs[UnlinkIdentity],

	TypePutSettings:      decodeAs[PutSettings],
	TypeStartSession:     decodeAs[StartSession],
	TypeImportAccounts:   decodeAs[ImportAccounts],
	TypeReplacePassword:  decodeAs[ReplacePassword],
	TypeRaiseLevel:       decodeAs[RaiseLevel],
	TypePutGossipKeyring: decodeAs[PutGossipKeyring],

	TypeRotateSecretsKey: decodeAs[RotateSecretsKey],
	TypeReseal:           decodeAs[Reseal],
	TypeRecoverCluster:   decodeAs[RecoverCluster],
}

func decodeAs[T Command](data []byte) (Command, error) {
	var command T
	if err := decMode.Unmarshal(data, &command); err != nil {
		return nil, err
	}
	return command, nil
}

// TypeOf is the number of an encoded command, 0 where the bytes are too short for one.
func TypeOf(data []byte) uint16 {
	if len(data) < headerSize {
		return 0
	}
	return binary.BigEndian.Uint16(data[1:])
}

// CommandTypes lists the numbers of all commands that this version knows, ascending.
func CommandTypes() []uint16 {
	types := make([]uint16, 0, len(decoders))
	for number := range decoders {
		types = append(types, number)
	}
	slices.Sort(types)
	return types
}

// Encode gives the bytes of a command for the log. Equal envelopes give equal bytes. e.Command is one of this package's
// command types, by value. Errors: ErrUnknownCommand (not one of them, or a pointer), ErrTooLarge.
func Encode(e Envelope) ([]byte, error) {
	if e.Command == nil {
		return nil, fmt.Errorf("encode command: %w: nil", ErrUnknownCommand)
	}
	number := e.Command.CommandType()
	if _, known := decoders[number]; !known {
		return nil, fmt.Errorf("encode command: %w: type %d", ErrUnknownCommand, number)
	}
	payload, err := encMode.Marshal(e.Command)
	if err != nil {
		return nil, fmt.Errorf("encode command %d: %w", number, err)
	}
	if headerSize+len(payload) > MaxCommandSize {
		return nil, fmt.Errorf("encode command %d: %w: %d bytes, at most %d", number, ErrTooLarge, headerSize+len(payload), MaxCommandSize)
	}
	data := make([]byte, headerSize, headerSize+len(payload))
	data[0] = codecVersion
	binary.BigEndian.PutUint16(data[1:], number)
	copy(data[3:], e.RequestID[:])
	binary.BigEndian.PutUint64(data[19:], uint64(e.ProposedAt))
	return append(data, payload...), nil
}

// Decode reads what Encode wrote; the Command inside is a value, not a pointer, and shares no memory with data. A leader
// decodes a forwarded command before it proposes it: bytes in the log that do not decode stop every node.
// Errors: ErrUnknownCommand, ErrMalformed, ErrTooLarge.
func Decode(data []byte) (Envelope, error) {
	if len(data) > MaxCommandSize {
		return Envelope{}, fmt.Errorf("decode command: %w: %d bytes, at most %d", ErrTooLarge, len(data), MaxCommandSize)
	}
	if len(data) == 0 {
		return Envelope{}, fmt.Errorf("decode command: %w: empty", ErrMalformed)
	}
	if data[0] != codecVersion {
		return Envelope{}, fmt.Errorf("decode command: %w: version %d, this one reads %d", ErrUnknownCommand, data[0], codecVersion)
	}
	if len(data) < headerSize {
		return Envelope{}, fmt.Errorf("decode command: %w: %d bytes", ErrMalformed, len(data))
	}
	number := binary.BigEndian.Uint16(data[1:])
	decode, known := decoders[number]
	if !known {
		return Envelope{}, fmt.Errorf("decode command: %w: type %d", ErrUnknownCommand, number)
	}
	var e Envelope
	copy(e.RequestID[:], data[3:])
	e.ProposedAt = int64(binary.BigEndian.Uint64(data[19:]))
	command, err := decode(data[headerSize:])
	if err != nil {
		return Envelope{}, fmt.Errorf("decode command %d: %w: %w", number, ErrMalformed, err)
	}
	e.Command = command
	return e, nil
}

// EncodeResult gives a result's bytes for the wire between nodes.
func EncodeResult(r Result) ([]byte, error) {
	payload, err := encMode.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode result: %w", err)
	}
	if len(payload)+1 > MaxResultSize {
		return nil, fmt.Errorf("encode result: %w: %d bytes, at most %d", ErrTooLarge, len(payload)+1, MaxResultSize)
	}
	return append([]byte{codecVersion}, payload...), nil
}

// DecodeResult reads what EncodeResult wrote. Errors: ErrUnknownCommand (another version), ErrMalformed, ErrTooLarge.
func DecodeResult(data []byte) (Result, error) {
	switch {
	case len(data) > MaxResultSize:
		return Result{}, fmt.Errorf("decode result: %w: %d bytes, at most %d", ErrTooLarge, len(data), MaxResultSize)
	case len(data) == 0:
		return Result{}, fmt.Errorf("decode result: %w: empty", ErrMalformed)
	case data[0] != codecVersion:
		return Result{}, fmt.Errorf("decode result: %w: version %d, this one reads %d", ErrUnknownCommand, data[0], codecVersion)
	}
	var r Result
	if err := decMode.Unmarshal(data[1:], &r); err != nil {
		return Result{}, fmt.Errorf("decode result: %w: %w", ErrMalformed, err)
	}
	return r, nil
}

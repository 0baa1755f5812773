package state

// UnmarshalByReflection is what every Unmarshal has to agree with.
func UnmarshalByReflection(data []byte, v any) error { return decMode.Unmarshal(data, v) }

// UnmarshalFlat says whether Unmarshal takes the short way.
func UnmarshalFlat(data []byte, v any) bool { return unmarshalFlat(data, v.(flat)) }

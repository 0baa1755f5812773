package authapi

import (
	"slices"
	"strings"

	"sluice/raftfsm/state"
)

type partyBody struct {
	Type string  `json:"type"`
	ID   *string `json:"id"`
}

// auditBody is one event as owners and admins see it.
type auditBody struct {
	ID             string            `json:"id"`
	Event          string            `json:"event"`
	OrganizationID *string           `json:"organization_id"`
	Actor          partyBody         `json:"actor"`
	Subject        partyBody         `json:"subject"`
	Result         string            `json:"result"`
	IP             *string           `json:"ip"`
	UserAgent      *string           `json:"user_agent"`
	RequestID      *string           `json:"request_id"`
	At             string            `json:"at"`
	Detail         map[string]string `json:"detail"`
}

func newAuditBody(e *state.AuditEvent) auditBody {
	b := auditBody{
		ID: e.ID, Event: e.Event, OrganizationID: textOrNull(e.OrganizationID),
		Actor: partyBody{e.ActorType, textOrNull(e.ActorID)}, Subject: partyBody{e.SubjectType, textOrNull(e.SubjectID)},
		Result: e.Result, IP: textOrNull(e.IP), UserAgent: textOrNull(e.UserAgent), RequestID: textOrNull(e.RequestID),
		At: formatTime(e.At), Detail: make(map[string]string, len(e.Detail)),
	}
	for _, p := range e.Detail {
		b.Detail[p.Name] = p.Value
	}
	return b
}

const (
	// maxFilterLen bounds ?event= and ?actor=, maxSubjectLen ?subject=, which may be an endpoint.
	maxFilterLen  = 64
	maxSubjectLen = 256
)

func handleAuditLog(c *call) error {
	filter, wrong := auditFilter(c.query)
	if filter.OrganizationID == "" {
		filter.OrganizationID = c.principal.OrganizationID
	}
	c.catchUpToRead()
	if _, err := c.allow(opReadAudit, filter.OrganizationID); err != nil {
		return err
	}
	limit, before, err := c.pageArgs()
	if err != nil {
		return err
	}
	if err := invalidFields(wrong); err != nil {
		return err
	}
	if export, err := c.wantsNDJSON(); err != nil {
		return err
	} else if export {
		return c.exportAudit(filter, before)
	}
	events, next, err := c.srv.state.Audit(filter, before, limit)
	if err != nil {
		return err
	}
	list := make([]auditBody, 0, len(events))
	for i := range events {
		list = append(list, newAuditBody(&events[i]))
	}
	return c.writePage(list, next)
}

// auditFilter reads the filters of a query and says what is wrong with them.
func auditFilter(query func(name string) string) (filter state.AuditFilter, wrong []FieldError) {
	filter = state.AuditFilter{
		OrganizationID: query("organization_id"), Event: query("event"), ActorID: query("actor"), SubjectID: query("subject"), Result: query("result"),
	}
	if !validEventFilter(filter.Event) {
		wrong = append(wrong, FieldError{"event", `must be an event's name, or the start of names and ".*"`})
	}
	if len(filter.ActorID) > maxFilterLen {
		wrong = append(wrong, FieldError{"actor", "must be the id of a user or a key"})
	}
	if len(filter.SubjectID) > maxSubjectLen {
		wrong = append(wrong, FieldError{"subject", "must be the id of what was changed or asked for"})
	}
	switch filter.Result {
	case "", resultSuccess, resultFailure, resultDenied:
	default:
		wrong = append(wrong, FieldError{"result", "must be success, failure or denied"})
	}
	for _, bound := range []struct {
		name   string
		millis *int64
	}{{"since", &filter.Since}, {"until", &filter.Until}} {
		text := query(bound.name)
		if text == "" {
			continue
		}
		var ok bool
		if *bound.millis, ok = parseTime(text); !ok {
			wrong = append(wrong, FieldError{bound.name, "must be a time as in RFC 3339, like 2030-01-02T15:04:05Z"})
		}
	}
	return filter, wrong
}

// validEventFilter accepts "", "api_key.created" and "api_key.*".
func validEventFilter(s string) bool {
	if s == "" {
		return true
	}
	if len(s) > maxFilterLen {
		return false
	}
	parts := strings.Split(s, ".")
	return len(parts) == 2 && eventWord(parts[0]) && (parts[1] == "*" || eventWord(parts[1]))
}

func eventWord(s string) bool {
	return s != "" && !slices.ContainsFunc([]byte(s), func(ch byte) bool { return (ch < 'a' || ch > 'z') && ch != '_' })
}

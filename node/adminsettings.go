package node

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"sluice/raftfsm/state"
)

const (
	// maxSettingsBody bounds a call with a document of settings, in which JSON may write a byte as six.
	maxSettingsBody = 6*state.MaxSettingsText + 4<<10
	// maxSettingsSource bounds what a caller calls its document, in bytes.
	maxSettingsSource = 255
	// maxChangesText bounds what the audit log has of a change, in bytes.
	maxChangesText = 1000
)

// SettingsVersion is one version of the settings. Fields may be added.
type SettingsVersion struct {
	Version   uint64     `json:"version"`    // 0: none was ever applied, and each node goes by its own configuration
	AppliedAt *time.Time `json:"applied_at"` // null for version 0
	SHA256    string     `json:"sha256"`     // of the text
	Bytes     int        `json:"bytes"`
	// Restores is the version that a rollback brought back, null where it was none; 0 is that of before the first.
	Restores *uint64 `json:"restores"`
	Address  string  `json:"address"` // whence the operator came
}

// Settings is the answer of GET /v1/settings and /v1/settings/versions/{version}.
type Settings struct {
	SettingsVersion
	Text string `json:"text"` // TOML, as it was applied
	// Running is the version that the answering node goes by; Problem says why it is not the newest, "" where it is.
	Running uint64 `json:"running"`
	Problem string `json:"problem,omitempty"`
}

// SettingsVersions is the answer of GET /v1/settings/versions: what is kept, the newest first.
type SettingsVersions struct {
	Data []SettingsVersion `json:"data"`
}

// SettingsCheck is the body of POST /v1/settings/check: a document, or a version that is kept.
type SettingsCheck struct {
	Text    *string `json:"text,omitempty"`
	Source  string  `json:"source,omitempty"` // what mistakes call the document; "settings", unless given
	Version *uint64 `json:"version,omitempty"`
}

// SettingsPlan says what applying a document would do.
type SettingsPlan struct {
	Version uint64          `json:"version"` // the newest now
	Same    bool            `json:"same"`    // the document is the newest version's, byte for byte
	Changes []SettingChange `json:"changes"` // in what the answering node goes by; others may have other configurations
	Notes   []string        `json:"notes"`
}

// SettingsPut is the body of PUT /v1/settings.
type SettingsPut struct {
	Text            *string `json:"text"`
	Source          string  `json:"source,omitempty"`
	ExpectedVersion *uint64 `json:"expected_version"` // the newest that the caller knows of; 0 for none
}

// SettingsRollback is the body of POST /v1/settings/rollback.
type SettingsRollback struct {
	Version         *uint64 `json:"version"` // whose text comes back; 0: no settings at all
	ExpectedVersion *uint64 `json:"expected_version"`
}

// SettingsApplied is the answer of both. Version is the newest now, and Applied says whether this call made it: settings that are in
// force already are not applied again.
type SettingsApplied struct {
	SettingsPlan
	Applied bool `json:"applied"`
}

// The calls about settings that change live.

func (a *adminServer) settingsNow(r *http.Request) (any, error) {
	a.node.catchUpToSettings(r.Context())
	return a.node.settingsStatus(a.node.newestSettings()), nil
}

func (a *adminServer) settingsVersions(r *http.Request) (any, error) {
	a.node.catchUpToSettings(r.Context())
	out := SettingsVersions{Data: []SettingsVersion{}}
	for _, s := range a.node.fsm.Settings() {
		out.Data = append([]SettingsVersion{settingsVersion(s)}, out.Data...)
	}
	return out, nil
}

func (a *adminServer) settingsVersion(r *http.Request) (any, error) {
	version, err := strconv.ParseUint(r.PathValue("version"), 10, 64)
	if err != nil {
		return nil, adminProblem(http.StatusNotFound, "not_found", "a version is a whole number")
	}
	a.node.catchUpToSettings(r.Context())
	s, err := a.node.keptSettings(version)
	if err != nil {
		return nil, err
	}
	return a.node.settingsStatus(s), nil
}

func (a *adminServer) checkSettings(r *http.Request, in SettingsCheck) (any, error) {
	a.node.catchUpToSettings(r.Context())
	switch {
	case (in.Text == nil) == (in.Version == nil):
		return nil, adminProblem(http.StatusUnprocessableEntity, "invalid_input", "give either text or version")
	case in.Version != nil:
		s, err := a.node.keptSettings(*in.Version)
		if err != nil {
			return nil, err
		}
		return a.node.planSettings(settingsName(s.Version), s.Text)
	}
	source, err := settingsSource(in.Source)
	if err != nil {
		return nil, err
	}
	return a.node.planSettings(source, *in.Text)
}

func (a *adminServer) putSettings(r *http.Request, in SettingsPut) (any, error) {
	if in.Text == nil || in.ExpectedVersion == nil {
		return nil, adminProblem(http.StatusUnprocessableEntity, "invalid_input", "text and expected_version are required")
	}
	source, err := settingsSource(in.Source)
	if err != nil {
		return nil, err
	}
	return a.node.proposeSettings(r.Context(), operatorOf(r), source, *in.Text, *in.ExpectedVersion, nil)
}

func (a *adminServer) rollBackSettings(r *http.Request, in SettingsRollback) (any, error) {
	if in.Version == nil || in.ExpectedVersion == nil {
		return nil, adminProblem(http.StatusUnprocessableEntity, "invalid_input", "version and expected_version are required")
	}
	a.node.catchUpToSettings(r.Context())
	s, err := a.node.keptSettings(*in.Version)
	if err != nil {
		return nil, err
	}
	return a.node.proposeSettings(r.Context(), operatorOf(r), settingsName(s.Version), s.Text, *in.ExpectedVersion, &s.Version)
}

func settingsSource(source string) (string, error) {
	switch {
	case source == "":
		return "settings", nil
	case len(source) > maxSettingsSource || strings.ContainsFunc(source, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return "", adminProblem(http.StatusUnprocessableEntity, "invalid_input", "source is too long, or has a control character")
	}
	return source, nil
}

func settingsVersion(s state.Settings) SettingsVersion {
	digest := sha256.Sum256([]byte(s.Text))
	v := SettingsVersion{Version: s.Version, SHA256: hex.EncodeToString(digest[:]), Bytes: len(s.Text), Address: s.Address}
	if s.Version > 0 {
		v.AppliedAt = unixMillis(s.AppliedAt)
	}
	if s.Rollback {
		v.Restores = &s.Restores
	}
	return v
}

func (n *Node) settingsStatus(s state.Settings) Settings {
	running := n.settings.now.Load()
	out := Settings{SettingsVersion: settingsVersion(s), Text: s.Text, Running: running.version}
	if running.problem != nil {
		out.Problem = running.problem.Error()
	}
	return out
}

// keptSettings finds a version; 0, that of before the first, is always there.
func (n *Node) keptSettings(version uint64) (state.Settings, error) {
	kept := n.fsm.Settings()
	for _, s := range kept {
		if s.Version == version {
			return s, nil
		}
	}
	if version == 0 {
		return state.Settings{}, nil
	}
	detail := "there are no versions yet"
	if len(kept) > 0 {
		detail = fmt.Sprintf("versions %d to %d are kept", kept[0].Version, kept[len(kept)-1].Version)
	}
	return state.Settings{}, adminProblem(http.StatusNotFound, "not_found", fmt.Sprintf("there is no version %d: %s", version, detail))
}

// planSettings checks a document and says what applying it would change.
func (n *Node) planSettings(source, text string) (SettingsPlan, error) {
	base := n.settingsBase()
	next, err := base.withSettings(source, text)
	if err != nil {
		return SettingsPlan{}, settingsProblem(err)
	}
	running, newest := n.settings.now.Load(), n.newestSettings()
	fresh := slices.DeleteFunc(slices.Clone(next.Sections), func(s string) bool { return slices.Contains(running.live.Sections, s) })
	plan := SettingsPlan{
		Version: newest.Version, Same: newest.Version > 0 && newest.Text == text,
		Changes: running.live.Config.liveChanges(&next.Config),
		Notes:   append(base.liveNotes(fresh), running.live.Config.bucketNotes(&next.Config)...),
	}
	return plan, nil
}

// settingsProblem tells every mistake with its place.
func settingsProblem(err error) error {
	var wrong *ConfigError
	if !errors.As(err, &wrong) {
		return err
	}
	p := adminProblem(http.StatusUnprocessableEntity, "invalid_input", wrong.Mistakes[0].String())
	if n := len(wrong.Mistakes); n > 1 {
		p.Detail += fmt.Sprintf(", and %d more", n-1)
	}
	for _, m := range wrong.Mistakes {
		p.Errors = append(p.Errors, AdminFieldError{Field: m.Key, Detail: m.Message, Source: m.Source, Line: m.Line, Column: m.Column})
	}
	return p
}

// errSettingsMoved: somebody else was first, or the caller has seen no such version.
func errSettingsMoved(newest, expected uint64) error {
	return adminProblem(http.StatusConflict, "conflict", fmt.Sprintf("the settings are at version %d, not %d: look at them, and apply yours again", newest, expected))
}

// changesText is what the audit log has of a change.
func changesText(changes []SettingChange) string {
	var b strings.Builder
	for i, c := range changes {
		text := c.Text()
		if b.Len()+len(text) > maxChangesText {
			fmt.Fprintf(&b, "; and %d more", len(changes)-i)
			break
		}
		if i > 0 {
			b.WriteString("; ")
		}
		b.WriteString(text)
	}
	return b.String()
}

// Text is a change in a line.
func (c SettingChange) Text() string {
	switch {
	case c.From == nil:
		return "+ " + c.Key + " = " + *c.To
	case c.To == nil:
		return "- " + c.Key + " = " + *c.From
	}
	return "~ " + c.Key + " = " + *c.From + " → " + *c.To
}

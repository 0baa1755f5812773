package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"sluice/authapi"
	"sluice/raftfsm/state"
)

// runningSettings is what this node goes by. It is immutable.
type runningSettings struct {
	version uint64 // 0: its own configuration alone
	text    string
	live    liveSettings
	// newest is what the log has, and problem why it is not what runs, nil where it is.
	newest  state.Settings
	problem error
}

// settings keeps the server of the public API by the newest settings in the log.
type settings struct {
	mu   sync.Mutex // of whoever changes what runs
	base Config     // this node's own configuration; redirect targets are reloaded
	now  atomic.Pointer[runningSettings]
}

// newestSettings is the version in force, the zero value for none.
func (n *Node) newestSettings() state.Settings {
	if kept := n.fsm.Settings(); len(kept) > 0 {
		return kept[len(kept)-1]
	}
	return state.Settings{}
}

// chooseSettings is what to go by: the newest version that goes with this node's configuration, but none older than what runs.
// kept are the versions in the log; running is nil at the start.
func chooseSettings(base Config, kept []state.Settings, running *runningSettings) *runningSettings {
	next := &runningSettings{live: liveSettings{Config: base}}
	if n := len(kept); n > 0 {
		next.newest = kept[n-1]
	}
	if running != nil && !running.isOf(kept) {
		running = nil // the state was replaced by another, a backup's
	}
	for _, s := range slices.Backward(kept) {
		if running != nil && s.Version <= running.version {
			break
		}
		live, err := base.withSettings(settingsName(s.Version), s.Text)
		if err == nil {
			next.version, next.text, next.live = s.Version, s.Text, live
			return next
		}
		if next.problem == nil {
			next.problem = err
		}
	}
	if running != nil {
		next.version, next.text, next.live = running.version, running.text, running.live
		if next.problem == nil {
			next.problem = running.problem
		}
	}
	return next
}

// isOf says whether what runs is of the history that kept is the end of.
func (r *runningSettings) isOf(kept []state.Settings) bool {
	if r.version == 0 || len(kept) > 0 && r.version < kept[0].Version {
		return true
	}
	return slices.ContainsFunc(kept, func(s state.Settings) bool { return s.Version == r.version && s.Text == r.text })
}

func settingsName(version uint64) string { return fmt.Sprintf("settings version %d", version) }

// openSettings chooses what the node starts with: what it went by before it stopped, or something newer.
func (n *Node) openSettings() {
	n.settings.base = n.cfg
	next := chooseSettings(n.cfg, n.fsm.Settings(), nil)
	n.settings.now.Store(next)
	n.logSettings(next)
}

func (n *Node) logSettings(s *runningSettings) {
	log := n.log.With("component", "settings")
	switch {
	case s.problem != nil:
		log.Error("the newest settings do not go with this node's configuration", "newest", s.newest.Version, "running", s.version, "error", s.problem)
	case s.version > 0:
		log.Info("settings are in force", "version", s.version)
	}
}

// takeUpSettings lets the public API go by the newest settings that were applied here. It is cheap where nothing is new.
func (n *Node) takeUpSettings() {
	if n.settings.now.Load().newest == n.newestSettings() {
		return
	}
	n.settings.mu.Lock()
	defer n.settings.mu.Unlock()
	running := n.settings.now.Load()
	next := chooseSettings(n.settings.base, n.fsm.Settings(), running)
	if next.newest == running.newest {
		return
	}
	if next.version != running.version || next.text != running.text {
		live, err := next.live.Config.apiLive()
		if err == nil {
			err = n.api.SetLive(live)
		}
		if err != nil { // the check of settings has missed something
			next = &runningSettings{version: running.version, text: running.text, live: running.live, newest: next.newest, problem: err}
		}
	}
	n.settings.now.Store(next)
	n.logSettings(next)
}

// apiLive maps what may change to authapi's.
func (c *Config) apiLive() (authapi.LiveConfig, error) {
	limit, err := c.apiLimits()
	if err != nil {
		return authapi.LiveConfig{}, err
	}
	routes, err := c.trustedRoutes()
	if err != nil {
		return authapi.LiveConfig{}, err
	}
	return authapi.LiveConfig{
		Limit: limit, Routes: routes, ScopeResources: slices.Clone(c.Scopes.Resources), RedirectURIs: slices.Clone(c.OAuth.RedirectURIs),
	}, nil
}

// checkSettings says whether the newest settings are in force here. A node that goes by older ones would limit, route and admit
// otherwise than the others.
func (n *Node) checkSettings() authapi.HealthCheck {
	c := authapi.HealthCheck{Name: "settings"}
	n.takeUpSettings() // or a probe in between would find the node unfit
	switch s := n.settings.now.Load(); {
	case s.problem != nil:
		c.Err = fmt.Errorf("version %d runs, for version %d does not go with this node's configuration: %w", s.version, s.newest.Version, firstMistake(s.problem))
	case s.version > 0:
		c.Detail = fmt.Sprintf("version %d", s.version)
	}
	return c
}

// firstMistake is the first line of what is wrong with settings.
func firstMistake(err error) error {
	var wrong *ConfigError
	if errors.As(err, &wrong) && len(wrong.Mistakes) > 1 {
		return fmt.Errorf("%s, and %d more", wrong.Mistakes[0], len(wrong.Mistakes)-1)
	}
	return err
}

// SettingsVersion is the version of the settings that this node goes by, 0 for its own configuration alone.
func (n *Node) SettingsVersion() uint64 { return n.settings.now.Load().version }

// ReloadOAuth takes over the providers and redirect targets of next, which is valid, secrets in files included. Where the settings
// have redirect targets, those stay in force. Sign-ins under way go on. Nothing is changed on an error.
func (n *Node) ReloadOAuth(next Config) error {
	cfg, err := next.apiOAuth()
	if err != nil {
		return fmt.Errorf("reload oauth: %w", err)
	}
	n.settings.mu.Lock()
	defer n.settings.mu.Unlock()
	base := n.settings.base
	base.OAuth.RedirectURIs = next.OAuth.RedirectURIs
	running := *n.settings.now.Load()
	if running.live, err = base.withSettings(settingsName(running.version), running.text); err != nil {
		return fmt.Errorf("reload oauth: %w", err)
	}
	cfg.RedirectURIs = slices.Clone(running.live.Config.OAuth.RedirectURIs)
	if err := n.api.SetOAuth(cfg); err != nil {
		return fmt.Errorf("reload oauth: %w", err)
	}
	n.settings.base = base
	n.settings.now.Store(&running)
	return nil
}

// settingsReadBound is how long a look at the settings waits to see what other nodes acknowledged before.
const settingsReadBound = 500 * time.Millisecond

// catchUpToSettings lets what is read next show what was acknowledged on any node before. It is an attempt: a cluster without a
// leader answers from what this node knows.
func (n *Node) catchUpToSettings(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, settingsReadBound)
	defer cancel()
	if err := (*apiCluster)(n).CatchUp(ctx); err != nil {
		n.log.Debug("settings read without catching up", "component", "settings", "error", err)
	}
	n.takeUpSettings()
}

// proposeSettings makes text the settings of the cluster, where expected is still the newest version, and returns once this node goes
// by them. restores is the version that a rollback brings back, nil for none.
func (n *Node) proposeSettings(ctx context.Context, by authapi.Operator, source, text string, expected uint64, restores *uint64) (SettingsApplied, error) {
	ctx, cancel := context.WithTimeout(ctx, proposeTimeout)
	defer cancel()
	if err := (*apiCluster)(n).CatchUp(ctx); err != nil {
		return SettingsApplied{}, err
	}
	n.takeUpSettings()
	plan, err := n.planSettings(source, text)
	if err != nil {
		return SettingsApplied{}, err
	}
	out := SettingsApplied{SettingsPlan: plan}
	if plan.Version != expected {
		return out, errSettingsMoved(plan.Version, expected)
	}
	if plan.Same {
		return out, nil
	}
	unheard, err := n.askSettings(ctx, source, text)
	if err != nil {
		return out, err
	}
	out.Notes = append(out.Notes, unheard...)
	s := state.Settings{Version: expected + 1, Text: text}
	if restores != nil {
		s.Rollback, s.Restores = true, *restores
	}
	if err := n.api.PutSettings(ctx, by, s, changesText(plan.Changes)); err != nil {
		var refusal *state.Refusal
		if errors.As(err, &refusal) && refusal.Code == state.CodeConflict {
			n.catchUpToSettings(ctx)
			return out, errSettingsMoved(n.newestSettings().Version, expected)
		}
		return out, err
	}
	n.takeUpSettings()
	out.Version, out.Applied = s.Version, true
	return out, nil
}

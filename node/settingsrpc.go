package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"

	"github.com/fxamacker/cbor/v2"

	"sluice/raftfsm/state"
)

const (
	maxSettingsRequest = state.MaxSettingsText + 4<<10
	maxSettingsAnswer  = 64 << 10
	// maxToldMistakes bounds what a node says about settings that do not go with its configuration.
	maxToldMistakes = 20
)

// settingsRequest asks whether settings go with a node's configuration. Keys are on the wire between versions: never reuse a
// number.
type settingsRequest struct {
	Source string `cbor:"1,keyasint"` // what mistakes call the document
	Text   string `cbor:"2,keyasint"`
}

// settingsReply says what does not, a line each.
type settingsReply struct {
	Mistakes []string `cbor:"1,keyasint"`
}

func (p *peerCalls) serveSettings(req settingsRequest) (settingsReply, error) {
	n := (*Node)(p)
	_, err := n.settingsBase().withSettings(clipText(req.Source, maxSettingsSource), req.Text)
	var wrong *ConfigError
	if !errors.As(err, &wrong) {
		return settingsReply{}, err
	}
	var reply settingsReply
	for _, m := range wrong.Mistakes[:min(len(wrong.Mistakes), maxToldMistakes)] {
		reply.Mistakes = append(reply.Mistakes, clipText(m.String(), 500))
	}
	return reply, nil
}

// settingsBase is this node's own configuration as it is now.
func (n *Node) settingsBase() Config {
	n.settings.mu.Lock()
	defer n.settings.mu.Unlock()
	return n.settings.base
}

// checkSettings asks a peer whether settings go with its configuration. errNoSuchCall: it is older than that question.
func (c *rpcClient) checkSettings(ctx context.Context, target string, req settingsRequest) (settingsReply, error) {
	var reply settingsReply
	body, err := cbor.Marshal(req)
	if err != nil {
		return reply, fmt.Errorf("%w: %w", errNotSent, err)
	}
	text, err := c.call(ctx, target, http.MethodPost, pathSettings, body, maxSettingsAnswer)
	if err != nil {
		return reply, err
	}
	if err := rpcDecoding.Unmarshal(text, &reply); err != nil {
		return reply, fmt.Errorf("call peer: %w", err)
	}
	return reply, nil
}

// askSettings lets every other member check settings before they are proposed. One that does not answer is a note and no refusal: a
// cluster must take settings while a node is down.
func (n *Node) askSettings(ctx context.Context, source, text string) (notes []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	members, names := n.members(), n.nodeNames()
	replies, errs := make([]settingsReply, len(members)), make([]error, len(members))
	var wg sync.WaitGroup
	for i, m := range members {
		if m.ID != n.data.NodeID {
			wg.Go(func() {
				replies[i], errs[i] = n.rpc.checkSettings(ctx, m.ID, settingsRequest{Source: source, Text: text})
			})
		}
	}
	wg.Wait()
	for i, m := range members {
		who := fmt.Sprintf("node %s (%s)", m.ID, names[m.ID])
		switch {
		case errors.Is(errs[i], errNoSuchCall):
			return nil, adminProblem(http.StatusConflict, "conflict", who+" is of a version whose settings do not change live, and would stop: upgrade it first")
		case errs[i] != nil:
			notes = append(notes, fmt.Sprintf("%s was not asked (%v): if these settings do not go with its configuration, it keeps those it has and is not ready", who, rootCause(errs[i])))
		case len(replies[i].Mistakes) > 0:
			p := adminProblem(http.StatusUnprocessableEntity, "invalid_input", who+" cannot take these settings: "+strings.Join(replies[i].Mistakes, "; "))
			return nil, p
		}
	}
	return notes, nil
}

package node_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"testing"

	"sluice/node"
	"sluice/node/nodetest"
)

// clusterStatus is GET /v1/cluster of one member.
func clusterStatus(m *nodetest.Member) (status node.ClusterStatus, err error) {
	resp, err := http.Get("http://" + m.Node.AdminAddr().String() + "/v1/cluster")
	if err != nil {
		return status, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return status, fmt.Errorf("answered %s", resp.Status)
	}
	return status, json.NewDecoder(resp.Body).Decode(&status)
}

func withAdmin(_ int, cfg *node.Config) { cfg.Admin.Listen = "127.0.0.1:0" }

func TestClusterStatus_TellsWhatIsWrong(t *testing.T) {
	t.Parallel()
	c := nodetest.Start(t, 3, nodetest.WithConfig(withAdmin))
	leader := c.Leader()
	nodetest.WaitFor(t, "a status without problems", func() error {
		for i, m := range c.Members {
			s, err := clusterStatus(m)
			if err != nil {
				return err
			}
			if s.AnsweredBy != m.Node.ID() || s.Leader != c.Members[leader].Node.ID() || len(s.Nodes) != 3 || len(s.Problems) > 0 || len(s.Roster.Nodes) != 3 || s.Horizon == nil {
				return fmt.Errorf("member %d says %+v", i, s)
			}
			for _, n := range s.Nodes {
				want := "voter"
				if n.ID == s.Leader {
					want = "leader"
				}
				if !n.Alive || n.Role != want || !n.InRoster || n.Lag == nil || n.Version != "test" || n.Name == "" || len(n.Problems) > 0 {
					return fmt.Errorf("member %d says of %s: %+v", i, n.ID, n)
				}
			}
		}
		return nil
	})
	down := c.Followers()[0]
	id := c.Members[down].Node.ID()
	c.Stop(down)
	nodetest.WaitFor(t, "a status that tells of the lost node", func() error {
		s, err := clusterStatus(c.Members[leader])
		if err != nil {
			return err
		}
		i := slices.IndexFunc(s.Nodes, func(n node.NodeStatus) bool { return n.ID == id })
		if i < 0 || s.Nodes[i].Alive || s.Nodes[i].Lag != nil || len(s.Nodes[i].Problems) == 0 || len(s.Problems) > 0 {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
}

// Package netfault holds no code: its tests run three nodes as processes of their own, each in a network namespace, and
// hurt the network between them, the processes and their clocks while clients ask on all of them. What the nodes admitted is
// then held against the bound that docs and code promise, to the unit.
//
// iptables cuts connections and loses packets; a relay between TUN interfaces delays them, lets them overtake each other and
// arrive twice; a build with another time.Now moves clocks. After each fault the nodes' own auditors are asked too.
//
// Everything lies in namespaces named after the run: a hub with a bridge, where the test process itself lives, and one for
// each node. The machine's own network is not touched, and no packet leaves it. It takes root, `ip` and `iptables`; without
// them the tests are skipped, or fail where CI=true.
package netfault

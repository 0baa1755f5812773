#!/usr/bin/env bash
# How Sluice grows, on this machine: the figures of docs/scale.md. Linux; a `sluice` in PATH or SLUICE=FILE.
#
#     bench/scale.sh nodes 1 3 5 7               clusters of so many nodes: limits-check over 100,000 keys at a fixed rate
#     bench/scale.sh keys 1000 10000 100000      so many API keys on one node: memory, disk, import, start
#     bench/scale.sh users 1000 10000            so many users, each with an organization of its own, in place of keys
#
# RATE=2000 SECONDS_LONG=10 are those of `nodes`. Clusters are in a temporary directory (TMPDIR) and are removed.
set -euo pipefail

sluice=${SLUICE:-sluice}
rate=${RATE:-2000}
long=${SECONDS_LONG:-10}
work=$(mktemp -d)
dev=
trap '[ -z "$dev" ] || { kill "$dev"; wait "$dev" || true; }; rm -rf "$work"' EXIT
export SLUICE_LIMITS__ANONYMOUS__LIMIT=1000000000 SLUICE_LIMITS__USER__LIMIT=1000000000

# begin DIR NODES starts a cluster, or starts it again, and sets targets, pids and admins.
begin() {
    local port=$((12000 + RANDOM % 15000)) i
    [ ! -e "$1/port" ] || port=$(cat "$1/port")
    "$sluice" dev --nodes "$2" --port "$port" --dir "$1/dev" >"$1/out" 2>"$1/err" &
    dev=$!
    echo "$port" >"$1/port"
    until grep -q '^ready' "$1/out"; do
        kill -0 "$dev" || { cat "$1/err" >&2; exit 1; }
        sleep 0.02
    done
    targets=() pids=() admins=()
    for ((i = 0; i < $2; i++)); do
        targets+=(--target "http://127.0.0.1:$((port + i))")
        pids+=("$(cat "$1/dev/node$((i + 1)).pid")")
        admins+=("$(sed -n '/^\[admin\]/,/^\[/s/^listen = "\(.*\)"/\1/p' "$1/dev/node$((i + 1)).toml")")
    done
}

end() {
    kill "$dev"
    wait "$dev" || true
    dev=
}

# metric NAME is the sum over all nodes.
metric() {
    local a
    for a in "${admins[@]}"; do curl -sf "http://$a/metrics"; done | awk -v name="$1" '$1 == name || index($1, name "{") == 1 { s += $2 } END { printf "%.0f\n", s }'
}

# memory FIELD is that of /proc/PID/status, in KiB a node.
memory() { for p in "${pids[@]}"; do awk -v f="$1:" '$1 == f { print $2 }' "/proc/$p/status"; done | awk '{ s += $1 } END { printf "%.0f\n", s / NR }'; }
ticks() { for p in "${pids[@]}"; do awk '{ print $14 + $15 }' "/proc/$p/stat"; done | awk '{ s += $1 } END { print s }'; }
now() { date +%s%N; }
per() { awk -v a="$1" -v b="$2" -v k="${3:-1}" 'BEGIN { printf "%.1f", b ? a * k / b : 0 }'; }

nodes() {
    local n d idle0 idle sent0 sent cpu0 cpu requests p99
    echo "nodes  log entries/s idle  CPU ms/s a node idle  gossip KB/s a node  CPU µs/check, all nodes  p99 ms  heap and stacks MiB a node"
    for n in "$@"; do
        d=$work/nodes$n
        mkdir "$d"
        begin "$d" "$n"
        sleep 3
        idle0=$(metric sluice_raft_last_index) cpu0=$(ticks)
        sleep 5
        idle=$(($(metric sluice_raft_last_index) - idle0)) cpu=$(($(ticks) - cpu0))
        printf '%5d  %20s  %20s' "$n" "$(per "$idle" $((5 * n)))" "$(per "$cpu" $((5 * n)) 10)"
        sent0=$(metric sluice_limit_sent_bytes_total) cpu0=$(ticks)
        "$sluice" bench run "${targets[@]}" --scenario limits-check --keys 100000 --limit 1000 --window 60 --rate "$rate" --duration "${long}s" --warmup 0s \
            --output "$d/report.json" >/dev/null 2>"$d/bench.err" || { cat "$d/bench.err" >&2; exit 1; }
        sent=$(($(metric sluice_limit_sent_bytes_total) - sent0)) cpu=$(($(ticks) - cpu0))
        requests=$(sed -n 's/^      "requests": \([0-9]*\),$/\1/p' "$d/report.json" | head -1)
        p99=$(sed -n 's/^        "p99_us": \([0-9.]*\),$/\1/p' "$d/report.json" | head -1)
        printf '  %18s  %23s  %6s  %27s\n' "$(per "$sent" $((long * n)) 0.001)" "$(per "$cpu" "$requests" 10000)" "$(per "$p99" 1000)" "$(per "$(memory RssAnon)" 1024)"
        end
        rm -rf "$d"
    done
}

# rows_users N are users without a password.
rows_users() { awk -v n="$1" 'BEGIN { for (i = 1; i <= n; i++) printf "{\"type\":\"user\",\"username\":\"scale-%d\",\"email\":\"scale-%d@example.com\"}\n", i, i }'; }

# rows_keys N are so many keys of one user, of hashes that no secret is known of.
rows_keys() {
    echo '{"type":"user","username":"scale","email":"scale@example.com"}'
    head -c $((32 * $1)) /dev/urandom | od -An -v -tx1 -w32 | tr -d ' ' |
        awk '{ printf "{\"type\":\"api_key\",\"name\":\"key %d\",\"owner\":\"scale\",\"sha256\":\"%s\",\"scopes\":[\"events:read\"]}\n", NR, $1 }'
}

# grow KIND N... is one node with so many of a kind.
grow() {
    local kind=$1 n d t took start anon0 anon
    shift
    echo "$kind  import s  heap and stacks MiB, bytes each  state on disk MiB, bytes each  log MiB  start again s"
    for n in "$@"; do
        d=$work/$kind$n
        mkdir "$d"
        begin "$d" 1
        anon0=$(memory RssAnon)
        "rows_$kind" "$n" >"$d/rows"
        t=$(now)
        "$sluice" import --config "$d/dev/node1.toml" "$d/rows" >"$d/import" 2>&1 || { tail -3 "$d/import" >&2; exit 1; }
        took=$(per $(($(now) - t)) 1000000000)
        end
        t=$(now)
        begin "$d" 1
        start=$(per $(($(now) - t)) 1000000000)
        sleep 5
        anon=$(memory RssAnon)
        state=$(find "$d/dev" -path '*/db-*' -type f -printf '%k\n' | awk '{ s += $1 } END { print s + 0 }')
        log=$(find "$d/dev" -name log.db -printf '%k\n' | awk '{ s += $1 } END { print s + 0 }')
        printf '%9d  %8s  %7s MiB %8s  %7s MiB %8s  %7s  %6s\n' "$n" "$took" "$(per "$anon" 1024)" "$(per $((anon - anon0)) "$n" 1024)" \
            "$(per "$state" 1024)" "$(per "$state" "$n" 1024)" "$(per "$log" 1024)" "$start"
        end
        rm -rf "$d"
    done
}

what=${1:?nodes, keys or users}
shift
case $what in
nodes) nodes "$@" ;;
keys | users) grow "$what" "$@" ;;
*) echo "scale.sh: want nodes, keys or users, not $what" >&2; exit 2 ;;
esac

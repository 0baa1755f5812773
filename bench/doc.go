// Package bench measures a running cluster from outside: it knows the public HTTP API and nothing else.
//
// [Accuracy] asks whether limits hold, and whether they are used up: it sends load patterns to the nodes of a cluster,
// notes every answer, and compares what was admitted with what the limit allows. Start with Accuracy.Run, which makes a
// [Report], and [Check], which judges a list of answers by itself.
//
// [Load] asks how much the cluster takes and how long its answers take: Load.Run makes a [LoadReport]. [Compare] compares
// two of them, read by [FiguresIn].
//
// What Accuracy finds is certain in one direction: an over-admission that is reported did happen, since only answers that
// arrived count, each at the latest moment at which it can have been decided. Answers that were lost on the way, and what
// others spend from the same limit, it cannot see.
package bench

// Package gubernatorpb holds the messages of Gubernator's API, generated from gubernator.proto.
package gubernatorpb

//go:generate protoc --go_out=. --go_opt=paths=source_relative --go-grpc_out=. --go-grpc_opt=paths=source_relative gubernator.proto

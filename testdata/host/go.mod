// A module of its own, so that llsteer needs nothing of what yzma needs.
module github.com/llsteer/llsteer/testdata/host

go 1.26.0

require (
	github.com/hybridgroup/yzma v1.28.0
	github.com/llsteer/llsteer v0.0.0
)

require (
	github.com/ebitengine/purego v0.10.0 // indirect
	github.com/jupiterrider/ffi v0.7.0 // indirect
	golang.org/x/sys v0.49.0 // indirect
)

replace github.com/llsteer/llsteer => ../..

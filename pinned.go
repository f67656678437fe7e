//go:build pinned

// Package llsteer keeps the module that ggml and llama.cpp are taken from in
// go.mod; nothing of it is linked into a Go program.
package llsteer

import _ "github.com/ollama/ollama/version"

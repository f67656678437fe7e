package models

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/llsteer/llsteer/testdata/demo"
	"github.com/stretchr/testify/require"
)

// A program may have another llama.cpp beside llsteer's: opened before ours or after, or, as
// in a program that is linked with it, where every library looks for its symbols first.
func TestBesideAnotherLlamaCpp(t *testing.T) {
	folder := os.Getenv("LLSTEER_SERVER")
	require.NotEmpty(t, folder, "LLSTEER_SERVER is not set: run make test-models")
	dir := t.TempDir()
	path, host := filepath.Join(dir, "demo.gguf"), filepath.Join(dir, "host")
	require.NoError(t, os.WriteFile(path, demo.Model, 0o600))
	build := exec.Command("go", "build", "-o", host, ".")
	build.Dir = "../host"
	out, err := build.CombinedOutput()
	require.NoError(t, err, string(out))

	const prompt = "To change the size of the window,"
	own := llsteer[struct{ Results []struct{ Text string } }](t, "generate", "-m", path, "-n", "12", "-p", prompt).Results[0].Text
	tokens := tokensOf(t, path, prompt)
	_, served := completion(t, server(t, path), tokens)
	require.Contains(t, served, own, "the two agree on this prompt; elsewhere they may part where two tokens are nearly as likely")
	for _, order := range []string{"ours,theirs,ours,theirs", "theirs,ours,theirs,ours"} {
		for name, env := range map[string][]string{
			"opened":         nil,
			"in front of us": {"LD_PRELOAD=" + filepath.Join(folder, "libllama.so"), "LD_LIBRARY_PATH=" + folder},
		} {
			t.Run(name+", "+order, func(t *testing.T) {
				cmd := exec.Command(host, path, prompt, order)
				cmd.Env = append(append(os.Environ(), "YZMA_LIB="+folder), env...)
				var stderr bytes.Buffer
				cmd.Stderr = &stderr
				out, err := cmd.Output()
				require.NoError(t, err, stderr.String())
				var texts []string
				require.NoError(t, json.Unmarshal(out, &texts), string(out))
				require.Equal(t, []string{own, own, own, own}, texts)
			})
		}
	}
}

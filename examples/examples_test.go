// Package examples runs the example programs.
package examples

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/llsteer/llsteer/loader"
	"github.com/llsteer/llsteer/testdata/demo"
	"github.com/stretchr/testify/require"
)

func TestOptimize(t *testing.T) {
	dir := t.TempDir()
	model, vector := filepath.Join(dir, "demo.gguf"), filepath.Join(dir, "vector.gguf")
	require.NoError(t, os.WriteFile(model, demo.Model, 0o600))
	out, err := exec.Command("go", "run", "./optimize", model, vector).CombinedOutput()
	require.NoError(t, err, string(out))
	require.Contains(t, string(out), "step 20: loss")
	s, err := loader.Read(vector)
	require.NoError(t, err)
	require.Equal(t, []int{2}, s.Layers)

	// the demo model has no chat template, and the example says so
	out, err = exec.Command("sh", "-c", `echo hello | go run ./chat "$0" "$1"`, model, vector).CombinedOutput()
	require.Error(t, err)
	require.Contains(t, string(out), "no chat template")
}

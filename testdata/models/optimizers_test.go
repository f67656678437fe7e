package models

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// The optimizer bundle meets a target in at most three quarters of the evaluations of loss and
// gradient that Adam needs, those that end no step counted. docs/steering.md has what was measured.
func TestBundleAgainstAdam(t *testing.T) {
	for _, c := range []struct {
		model, layer string
		target       float64
	}{
		{"gemma3-270m.gguf", "6", 3}, {"gemma3-270m.gguf", "9", 3}, {"gemma3-270m.gguf", "15", 3}, {"smollm2-135m.gguf", "10", 10},
	} {
		t.Run(c.model+" "+c.layer, func(t *testing.T) {
			type found struct {
				Stop        string
				Evaluations int
				Loss        float64
				Norms       map[string]float64
			}
			run := func(optimizer string, most int) found {
				return llsteer[found](t, "optimize", "-m", model(t, c.model), "recipe.yaml", "-o", filepath.Join(t.TempDir(), "v.gguf"),
					"--layer", c.layer, "--target-loss", fmt.Sprint(c.target), "--max-iters", fmt.Sprint(most), "--optimizer", optimizer)
			}
			bundle := run("bundle", 40)
			require.Equal(t, "target_loss", bundle.Stop)
			adam := run("adam", bundle.Evaluations*4/3-1) // one evaluation more than steps
			t.Logf("bundle %+v, adam then %+v", bundle, adam)
			require.Equal(t, "max_iters", adam.Stop)
		})
	}
}

package optimize

import (
	"context"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/llsteer/llsteer/ggmlsteer"
	"github.com/llsteer/llsteer/loader"
	"github.com/llsteer/llsteer/testdata/demo"
	"github.com/stretchr/testify/require"
)

// The demo job, on the engine, goes the way that PyTorch went on the same weights in
// float32 (testdata/demo/reference.json): 60 steps from the same start.
func TestDemoFollowsPyTorch(t *testing.T) {
	const (
		// a sum of ten losses, 244 in all, each of a dozen float32 log-probabilities
		lossTolerance     = 5e-4
		gradientTolerance = 3e-5 // of the norm
		vectorTolerance   = 1e-4 // of the norm
		normTolerance     = 1e-4 // of the median norm
	)
	data, err := os.ReadFile("../testdata/demo/reference.json")
	require.NoError(t, err)
	var pytorch struct {
		MedianNorms []float64 `json:"median_norms"`
		Start       struct {
			Losses   Losses
			Gradient []float64
		}
		Runs []struct {
			Start  []float32
			Vector []float64
			Losses []float64
		}
	}
	require.NoError(t, json.Unmarshal(data, &pytorch))
	expected := pytorch.Runs[0]

	path := filepath.Join(t.TempDir(), "demo.gguf")
	require.NoError(t, os.WriteFile(path, demo.Model, 0o600))
	m, err := ggmlsteer.Open(path, ggmlsteer.Options{})
	require.NoError(t, err)
	defer m.Close()
	job, err := ReadJob("demo", demo.Job)
	require.NoError(t, err)
	job.Start = map[string]loader.Parameters{"2": {Vector: expected.Start}}
	var steps []Step
	r, err := Run(context.Background(), m, job, func(s Step) { steps = append(steps, s) })
	require.NoError(t, err)
	require.Equal(t, 60, r.Iters)
	require.Len(t, steps, len(expected.Losses))

	for i, example := range pytorch.Start.Losses {
		for side, losses := range example {
			for k, loss := range losses {
				near(t, loss, steps[0].Losses[i][side][k], lossTolerance, "loss of a completion")
			}
		}
	}
	nearVector(t, pytorch.Start.Gradient, steps[0].Layers[0].Gradient.Vector, gradientTolerance)
	for i, loss := range expected.Losses {
		near(t, loss, steps[i].Loss, lossTolerance, "loss")
	}
	nearVector(t, expected.Vector, r.Steering.Params[0].Vector, vectorTolerance)

	job.LR, job.MaxIters, job.Layers, job.Start = nil, ptr(0), Layers{All: true}, nil
	r, err = Run(context.Background(), m, job, nil)
	require.NoError(t, err)
	for i, key := range job.layerKeys(r.Steering.Layers) {
		lr := 0.01 * pytorch.MedianNorms[i] / math.Sqrt(float64(m.Info().Embd))
		near(t, lr, r.LR[key], normTolerance*lr, "auto lr of layer "+key)
	}
}

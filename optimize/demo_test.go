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

// demoModel opens the demo model for as long as the test runs.
func demoModel(t *testing.T) *ggmlsteer.Model {
	path := filepath.Join(t.TempDir(), "demo.gguf")
	require.NoError(t, os.WriteFile(path, demo.Model, 0o600))
	m, err := ggmlsteer.Open(path, ggmlsteer.Options{})
	require.NoError(t, err)
	t.Cleanup(func() { m.Close() })
	return m
}

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

	m := demoModel(t)
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

// Steered by PyTorch's vectors, the demo model continues every prompt of the
// table with PyTorch's tokens: at each place the likeliest token but pad, EOS,
// BOS and the unknown one, which the table leaves out, is the table's. So the
// shares of the table are those of the engine, too.
func TestDemoContinuesAsPyTorch(t *testing.T) {
	const (
		firstToken = 4    // smaller ids are never chosen
		nearTie    = 1e-3 // logits that differ by less may change places: ten times what float32 adds to them
	)
	type continuations struct {
		Continuations []struct{ Tokens []ggmlsteer.Token }
	}
	var pytorch struct {
		Runs []struct {
			Seed   int
			Vector []float32
		}
		Table []struct {
			Seed             int
			Strength         float64
			English, Spanish continuations
		}
	}
	data, err := os.ReadFile("../testdata/demo/reference.json")
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(data, &pytorch))
	m := demoModel(t)
	d, err := m.NewDecoder(ggmlsteer.DecoderOptions{Context: 64, Precision: ggmlsteer.F32})
	require.NoError(t, err)
	defer d.Close()
	compared, ties := 0, 0
	for _, row := range pytorch.Table {
		steering := &loader.Steering{Kind: loader.Add, Layers: []int{2}, Params: []loader.Parameters{{Vector: pytorch.Runs[row.Seed].Vector}}}
		require.Equal(t, row.Seed, pytorch.Runs[row.Seed].Seed)
		for _, way := range []struct {
			strength float64
			prompts  []string
			expected continuations
		}{{row.Strength, demo.Prompts.English, row.English}, {-row.Strength, demo.Prompts.Spanish, row.Spanish}} {
			require.NoError(t, d.Steer(ggmlsteer.Active{Steering: steering, Strength: way.strength}))
			require.Len(t, way.expected.Continuations, len(way.prompts))
			for i, prompt := range way.prompts {
				tokens, err := m.Tokenize(prompt, false)
				require.NoError(t, err)
				expected := way.expected.Continuations[i].Tokens
				logits, err := d.Logits(context.Background(), append(tokens, expected[:len(expected)-1]...), len(tokens))
				require.NoError(t, err)
				for j, token := range expected {
					row := logits[len(tokens)-1+j]
					best := token
					for id := firstToken; id < len(row); id++ {
						if row[id] > row[best] {
							best = ggmlsteer.Token(id)
						}
					}
					compared++
					if best != token {
						ties++
						require.Less(t, row[best]-row[token], float32(nearTie), "token %d after %q at strength %v", j, prompt, way.strength)
					}
				}
			}
		}
	}
	require.Equal(t, 13*40*25, compared)
	require.LessOrEqual(t, ties, compared/1000)
}

// Our own vectors, from three seeds, turn as many prompts as PyTorch's, within
// a tenth, at the strength that the quickstart uses.
func TestDemoVectorsTurnTheLanguage(t *testing.T) {
	const strength, share = 0.9, 0.95 - 0.1
	m := demoModel(t)
	job, err := ReadJob("demo", demo.Job)
	require.NoError(t, err)
	for job.Seed = range 3 {
		r, err := Run(context.Background(), m, job, nil)
		require.NoError(t, err)
		for _, precision := range []ggmlsteer.Precision{ggmlsteer.F32, ggmlsteer.Ordinary} {
			for _, way := range []struct {
				strength float64
				prompts  []string
				language string
			}{{0, demo.Prompts.English, "spanish"}, {strength, demo.Prompts.English, "spanish"}, {0, demo.Prompts.Spanish, "english"}, {-strength, demo.Prompts.Spanish, "english"}} {
				d, err := m.NewDecoder(ggmlsteer.DecoderOptions{Context: 64, Sequences: len(way.prompts), Precision: precision})
				require.NoError(t, err)
				defer d.Close()
				require.NoError(t, d.Steer(ggmlsteer.Active{Steering: r.Steering, Strength: way.strength}))
				var prompts [][]ggmlsteer.Token
				for _, text := range way.prompts {
					tokens, err := m.Tokenize(text, false)
					require.NoError(t, err)
					prompts = append(prompts, tokens)
				}
				all, err := d.Generate(context.Background(), prompts, ggmlsteer.GenerateOptions{Tokens: 25}, nil)
				require.NoError(t, err)
				turned := 0.0
				for _, c := range all {
					if demo.Language(c.Text) == way.language {
						turned++
					}
				}
				turned /= float64(len(prompts))
				if way.strength == 0 {
					require.LessOrEqual(t, turned, 0.1)
				} else {
					require.GreaterOrEqual(t, turned, share, "seed %d, precision %v, to %s", job.Seed, precision, way.language)
				}
			}
		}
	}
}

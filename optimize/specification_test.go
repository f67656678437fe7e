package optimize

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/llsteer/llsteer/ggmlsteer"
	"github.com/llsteer/llsteer/loader"
	"github.com/stretchr/testify/require"
)

// A specified is one entry of testdata/reference/specification.json, which PyTorch computed
// from the specification alone: see SPECIFICATION.md there.
type specified struct {
	Name, Model, Kind string
	Clamp             *float64
	Parts             []specifiedPart
	Examples          int
	Options           map[string]any
	Draws             [][][][][]float64 // [evaluation][draw][completion][part]

	// one evaluation
	Total float64

	// several
	Rates            []float64
	Iters            int
	Stop             string
	Totals           []float64
	TangentGradients [][][]float64 `json:"tangent_gradients"`

	// the output-constrained stage
	Limits                               []float64
	Scale                                float64
	Objectives, Sizes                    []float64
	Infeasibilities, Slacks, Multipliers [][]float64
	Meets                                []bool
	Returned                             int
	ReturnedParameters                   []specifiedParameters `json:"returned_parameters"`
	Losses                               json.RawMessage       // [completion], or [evaluation][completion]
	Gradients                            json.RawMessage       // [part], or at steps
	Parameters                           json.RawMessage
	Float32Error                         map[string]float64 `json:"float32_error"`
}

type specifiedPart struct {
	Layers      []int
	Vector      []float32
	Left, Right [][]float32
}

type specifiedParameters struct {
	Vector      []float64
	Left, Right [][]float64
}

type specification struct {
	Models map[string]struct {
		File       string
		Vocabulary int
	}
	ExampleSets [][]struct {
		Prompt     []ggmlsteer.Token
		Src        [][]ggmlsteer.Token `json:"src_completions"`
		Dst        [][]ggmlsteer.Token `json:"dst_completions"`
		Negative   bool                `json:"is_negative"`
		Token      *string
		SrcTargets []float64 `json:"src_completions_target_losses"`
		DstTargets []float64 `json:"dst_completions_target_losses"`
	} `json:"example_sets"`
	Kinds, Variants, Descents, Stops, Noise, Minibatch, Automatic []specified
	OutputConstrained                                             []specified `json:"output_constrained"`
	Scale                                                         []struct {
		Name, Model string
		Examples    int
		Automatic   []struct {
			Kind               string
			Layers             [][]int
			LR                 []float64
			StartingNorms      []float64 `json:"starting_norms"`
			StartingAffineNorm float64   `json:"starting_affine_norm"`
		}
	}

	open map[string]*ggmlsteer.Model
}

func readSpecification(t *testing.T) *specification {
	data, err := os.ReadFile("../testdata/reference/specification.json")
	require.NoError(t, err)
	s := &specification{open: map[string]*ggmlsteer.Model{}}
	require.NoError(t, json.Unmarshal(data, s))
	for name, m := range s.Models {
		model, err := ggmlsteer.Open(withTokenizer(t, filepath.Join("..", "testdata", "reference", m.File), m.Vocabulary), ggmlsteer.Options{})
		require.NoError(t, err)
		t.Cleanup(func() { model.Close() })
		s.open[name] = model
	}
	return s
}

// job is an entry as a job.
func (s *specification) job(t *testing.T, e *specified) *Job {
	t.Helper()
	job := &Job{Options: DefaultOptions(), Start: map[string]loader.Parameters{}}
	for name, value := range e.Options {
		text, err := json.Marshal(value)
		require.NoError(t, err)
		require.NoError(t, optionNamed(name).Set(&job.Options, strings.Trim(string(text), `"`)), name)
	}
	job.VectorClamp = e.Clamp
	for _, p := range e.Parts {
		key := strconv.Itoa(p.Layers[0])
		if len(p.Layers) > 1 {
			key, job.Shared = sharedKey, true
		}
		job.Layers.List = append(job.Layers.List, p.Layers...)
		job.Start[key] = loader.Parameters{Vector: p.Vector, Left: p.Left, Right: p.Right}
		if e.Kind == string(loader.Affine) {
			job.AffineRank = ptr(len(p.Left))
		}
	}
	texts := func(completions [][]ggmlsteer.Token) (all []string) {
		for _, c := range completions {
			all = append(all, letters(c))
		}
		return all
	}
	set := s.ExampleSets[e.Examples]
	for _, of := range set {
		if _, minibatch := e.Options["minibatch_size"]; minibatch {
			job.Prompts, job.Src, job.Dst = append(job.Prompts, letters(of.Prompt)), texts(of.Src), texts(of.Dst)
			continue
		}
		example := Example{Prompt: letters(of.Prompt), Src: texts(of.Src), Dst: texts(of.Dst), Negative: of.Negative, SrcTargets: of.SrcTargets, DstTargets: of.DstTargets}
		if of.Token != nil {
			example.Token = span(t, *of.Token)
		}
		job.Examples = append(job.Examples, example)
	}
	return job
}

// descent is an entry's, before its first evaluation.
func (s *specification) descent(t *testing.T, e *specified, job *Job, progress func(Step)) *descent {
	t.Helper()
	setup, err := newSetup(context.Background(), engine{s.open[e.Model]}, job)
	require.NoError(t, err)
	d := setup.descent(nil, progress)
	o := d.objective
	t.Cleanup(func() { require.NoError(t, o.close()) })
	if e.Draws != nil {
		o.noise.draw = func(at drawing, width int) []float64 {
			return slices.Clone(e.Draws[at.iter][at.draw][at.completion][at.params])
		}
	}
	return d
}

// flatLosses are a step's, by example, src before dst.
func flatLosses(losses Losses) (all []float64) {
	for _, example := range losses {
		all = append(all, slices.Concat(example[0], example[1])...)
	}
	return all
}

// nearPart compares each row by itself; a row of zeros has to be zeros.
func nearPart(t *testing.T, expected specifiedParameters, found loader.Parameters, tolerance float64, what string) {
	t.Helper()
	require.Len(t, found.Left, len(expected.Left), what)
	all := slices.Concat([][]float64{expected.Vector}, expected.Left, expected.Right)
	for i, row := range rows(found) {
		require.Len(t, row, len(all[i]), what)
		apart := doubles(row)
		axpy(-1, all[i], apart)
		require.True(t, length(apart) <= tolerance*length(all[i]), "%s: row %d is off by %.3g of its norm %.3g, expected at most %.3g",
			what, i, length(apart)/length(all[i]), length(all[i]), tolerance)
	}
}

// atLeast is a tolerance that leaves room for PyTorch's own rounding where it is larger.
func (e *specified) atLeast(tolerance float64, what string) float64 {
	const room = 10 // ours is another rounding of the same size, or a few times that
	return max(tolerance, room*e.Float32Error[what])
}

// Every kind, mask and sign, and every variant of the loss: losses, totals and gradients.
func TestSpecifiedEvaluations(t *testing.T) {
	s := readSpecification(t)
	entries := slices.Concat(s.Kinds, s.Variants)
	require.Greater(t, len(entries), 140)
	for i := range entries {
		e := &entries[i]
		t.Run(e.Name, func(t *testing.T) {
			job := s.job(t, e)
			job.MaxIters, job.LR = ptr(0), ptr(0.01)
			d := s.descent(t, e, job, nil)
			step, err := d.evaluate(context.Background())
			require.NoError(t, err)
			require.Equal(t, e.Kind, string(job.Kind()))
			var losses []float64
			require.NoError(t, json.Unmarshal(e.Losses, &losses))
			found := flatLosses(step.Losses)
			require.Len(t, found, len(losses))
			for k := range losses {
				near(t, losses[k], found[k], caseLossTolerance, fmt.Sprintf("loss %d", k))
			}
			near(t, e.Total, step.Loss, caseLossTolerance*float64(len(losses)), "total")
			var gradients []specifiedParameters
			require.NoError(t, json.Unmarshal(e.Gradients, &gradients))
			require.Len(t, step.Layers, len(gradients))
			for k, g := range gradients {
				nearPart(t, g, step.Layers[k].Gradient, e.atLeast(caseGradientTolerance, "gradients"), "gradient of part "+strconv.Itoa(k))
			}
		})
	}
}

// Descents with each kind, limits, stops, given noise, minibatches, and automatic rates.
func TestSpecifiedDescents(t *testing.T) {
	s := readSpecification(t)
	entries := slices.Concat(s.Descents, s.Stops, s.Noise, s.Minibatch, s.Automatic)
	require.Greater(t, len(entries), 80)
	for i := range entries {
		e := &entries[i]
		t.Run(e.Name, func(t *testing.T) {
			job := s.job(t, e)
			var steps []Step
			d := s.descent(t, e, job, func(s Step) { steps = append(steps, s) })
			for k, rate := range e.Rates {
				near(t, rate, d.scales.lr[k], 1e-5*rate, "lr")
			}
			r, err := d.run(context.Background())
			require.NoError(t, err)
			require.Equal(t, e.Stop, string(r.Stop))
			require.Equal(t, e.Iters, r.Iters)
			require.Len(t, steps, len(e.Totals))
			var losses [][]float64
			require.NoError(t, json.Unmarshal(e.Losses, &losses))
			for n := range steps {
				near(t, e.Totals[n], steps[n].Loss, e.atLeast(runLossTolerance, "totals"), fmt.Sprintf("total %d", n))
				for k, loss := range flatLosses(steps[n].Losses) {
					near(t, losses[n][k], loss, e.atLeast(runLossTolerance, "losses"), fmt.Sprintf("loss %d of evaluation %d", k, n))
				}
			}
			var gradients, parameters []struct {
				Step  int
				Parts []specifiedParameters
			}
			require.NoError(t, json.Unmarshal(e.Gradients, &gradients))
			require.NotEmpty(t, gradients)
			for _, at := range gradients {
				for k, g := range at.Parts {
					nearPart(t, g, steps[at.Step].Layers[k].Gradient, e.atLeast(caseGradientTolerance, "gradients"), fmt.Sprintf("gradient of part %d after %d steps", k, at.Step))
				}
			}
			require.NoError(t, json.Unmarshal(e.Parameters, &parameters))
			for _, at := range parameters {
				for k, p := range at.Parts {
					nearPart(t, p, steps[at.Step].Layers[k].Params, e.atLeast(runVectorTolerance, "parameters"), fmt.Sprintf("part %d after %d steps", k, at.Step))
				}
			}
			if e.TangentGradients != nil {
				for i, c := range d.objective.completions { // of the last window, where there are several
					for k, g := range e.TangentGradients[c.id] {
						apart := slices.Clone(g)
						axpy(-1, d.objective.noise.tangents[i][k], apart)
						require.True(t, length(apart) <= e.atLeast(caseGradientTolerance, "tangent_gradients")*length(g), "tangent of completion %d", c.id)
					}
				}
			}
		})
	}
}

// What is chosen from the stream where a job does not say it: rates, and the norms of random starts.
func TestSpecifiedScales(t *testing.T) {
	const tolerance = 1e-5 // of a median of float32 norms, whose own error is 2e-6
	s := readSpecification(t)
	require.NotEmpty(t, s.Scale)
	for _, e := range s.Scale {
		for _, a := range e.Automatic {
			t.Run(fmt.Sprintf("%s_%s_%v", e.Name, a.Kind, a.Layers), func(t *testing.T) {
				job := s.job(t, &specified{Examples: e.Examples})
				for _, layers := range a.Layers {
					job.Shared = len(layers) > 1
					job.Layers.List = append(job.Layers.List, layers...)
				}
				switch loader.Kind(a.Kind) {
				case loader.Affine:
					job.AffineRank = ptr(2)
				case loader.Ablate:
					job.VectorClamp = ptr(0.0)
				case loader.Clamp:
					job.VectorClamp = ptr(1.0)
				}
				setup, err := newSetup(context.Background(), engine{s.open[e.Model]}, job)
				require.NoError(t, err)
				require.Len(t, setup.params, len(a.Layers))
				for i, p := range setup.params {
					near(t, a.LR[i], setup.scales.lr[i], tolerance*a.LR[i], "lr")
					near(t, a.StartingNorms[i], norm(p.Vector), tolerance*a.StartingNorms[i], "start")
					for _, row := range rows(p)[1:] {
						near(t, a.StartingAffineNorm, norm(row), tolerance*a.StartingAffineNorm, "row")
					}
				}
			})
		}
	}
}

// The output-constrained stage, step by step.
func TestSpecifiedOutputConstraints(t *testing.T) {
	const (
		lossTolerance      = 5e-4 // losses, objectives, and what follows from them
		parameterTolerance = 3e-4 // of the norm, after 15 steps
	)
	s := readSpecification(t)
	require.NotEmpty(t, s.OutputConstrained)
	for i := range s.OutputConstrained {
		e := &s.OutputConstrained[i]
		t.Run(e.Name, func(t *testing.T) {
			job := s.job(t, e)
			job.LR = ptr(0.01) // of the first stage, which is not run
			type seen struct{ losses, slacks, multipliers []float64 }
			var all []seen
			var params [][]loader.Parameters
			var c *constrained
			d := s.descent(t, e, job, func(s Step) {
				require.Equal(t, 2, s.Stage)
				require.Equal(t, len(all), s.Iter)
				all = append(all, seen{flatLosses(s.Losses), slices.Clone(c.Slacks), slices.Clone(c.Multipliers)})
				var p []loader.Parameters
				for _, l := range s.Layers {
					p = append(p, l.Params)
				}
				params = append(params, p)
			})
			c = &constrained{descent: d, shrinking: &shrinking{Entered: &Step{}}}
			kept, summary, err := c.run(context.Background())
			require.NoError(t, err)
			require.Equal(t, e.Iters, summary.Iters)
			near(t, e.Scale, c.Factor, 1e-5*e.Scale, "scale")
			require.Len(t, c.Limits, len(e.Limits))
			for k, limit := range e.Limits {
				near(t, limit, c.Limits[k], 1e-4, "limit")
			}
			if e.Returned != e.Iters { // once more, so that the last step is the result's
				require.Len(t, all, e.Iters+2)
			} else {
				require.Len(t, all, e.Iters+1)
			}
			var losses [][]float64
			require.NoError(t, json.Unmarshal(e.Losses, &losses))
			for n := range losses {
				for k, loss := range losses[n] {
					near(t, loss, all[n].losses[k], e.atLeast(lossTolerance, "losses"), fmt.Sprintf("loss %d of evaluation %d", k, n))
				}
				for k := range e.Limits {
					near(t, e.Slacks[n][k], all[n].slacks[k], e.atLeast(lossTolerance, "slacks"), fmt.Sprintf("slack %d of evaluation %d", k, n))
					near(t, e.Multipliers[n][k], all[n].multipliers[k], e.atLeast(lossTolerance, "multipliers"), fmt.Sprintf("multiplier %d of evaluation %d", k, n))
				}
			}
			var last []specifiedParameters
			require.NoError(t, json.Unmarshal(e.Parameters, &last))
			for k, p := range last {
				nearPart(t, p, params[e.Iters][k], e.atLeast(parameterTolerance, "parameters"), fmt.Sprintf("part %d at the end", k))
			}
			for k, l := range kept.Layers {
				require.Equal(t, params[e.Returned][k], l.Params, "what is returned")
			}
			require.False(t, math.IsNaN(summary.NormAfter))
		})
	}
}

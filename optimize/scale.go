package optimize

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/llsteer/llsteer/ggmlsteer"
	"github.com/llsteer/llsteer/loader"
)

// Scales are the numbers of a run that depend on the size of the residual stream
// (docs/steering.md, section 5), one of each for every layer's parameters.
type scales struct {
	lr            []float64
	startingNorms []float64
	units         []float64 // what vectors, norms and steps are measured in: 1 unless do_relative_scale
}

const (
	streamShare = 0.01 // of the stream's norm that an automatic Adam step is long
	startShare  = 0.02 // of the stream's norm, that a clamp starts with
	unitShare   = 0.1  // makes a unit about 1 in the middle of Gemma-2-2B, where the tutorial's numbers are from
	affineLR    = 0.003
)

// scales chooses what the job leaves to be chosen. Shared parameters have the least
// of their layers' numbers.
func (j *Job) scales(ctx context.Context, m model, layers []int, completions []completion) (*scales, error) {
	kind := j.Kind()
	autoLR := j.LR == nil && kind != loader.Affine
	autoStart := j.StartingNorm == nil && projects(kind)
	medians := slices.Repeat([]float64{math.NaN()}, len(layers))
	if autoLR || autoStart || j.DoRelativeScale {
		var err error
		if medians, err = streamMedians(ctx, m, layers, completions); err != nil {
			return nil, err
		}
	}
	if j.Shared {
		medians = []float64{slices.Min(medians)}
	}
	root := math.Sqrt(float64(m.Info().Embd))
	s := &scales{}
	for _, median := range medians {
		unit, lr, start := 1.0, affineLR, 1.0
		if j.DoRelativeScale {
			unit = unitShare * median / root
		}
		switch {
		case j.LR != nil:
			lr = *j.LR * unit
		case autoLR:
			lr = streamShare * median / root
		}
		switch {
		case autoStart:
			start = startShare * median
		case j.StartingNorm != nil:
			start = *j.StartingNorm * unit
		default:
			start = unit
		}
		s.units, s.lr, s.startingNorms = append(s.units, unit), append(s.lr, lr), append(s.startingNorms, start)
	}
	return s, nil
}

// streamMedians are the median norms of the unsteered residual stream at the input of
// layers, over all tokens of all examples but the first, whose norm is many times that of
// the others.
func streamMedians(ctx context.Context, m model, layers []int, completions []completion) ([]float64, error) {
	texts := make([][]ggmlsteer.Token, len(completions))
	for i, c := range completions {
		texts[i] = c.tokens
	}
	norms, err := m.StreamNorms(ctx, texts, layers)
	if err != nil {
		return nil, err
	}
	medians := make([]float64, len(layers))
	for l, layer := range layers {
		var all []float64
		for i, c := range completions {
			from := 1
			if i > 0 && completions[i-1].example == c.example {
				from = c.prompt // the prompt was counted
			}
			all = append(all, norms[l][i][from:]...)
		}
		if medians[l] = median(all); !above0.holds(medians[l]) {
			return nil, &loader.InputError{
				Message: fmt.Sprintf("the residual stream at layer %d has the median norm %v, and no step size can be chosen from it", layer, medians[l]),
				Hint:    "give lr and starting_norm as numbers",
			}
		}
	}
	return medians, nil
}

// median is the middle value, or the mean of the two in the middle.
func median(x []float64) float64 {
	x = slices.Sorted(slices.Values(x))
	n := len(x)
	return (x[(n-1)/2] + x[n/2]) / 2
}

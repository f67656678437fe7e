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
	unitShare   = 0.01 // of the norm at position 0, that a unit is over √width
	affineLR    = 0.003
)

// scales chooses what the job leaves to be chosen. Shared parameters have the least
// of their layers' numbers.
func (j *Job) scales(ctx context.Context, m model, layers []int, completions []completion) (*scales, error) {
	kind := j.Kind()
	autoLR := j.LR == nil && kind != loader.Affine
	autoStart := j.StartingNorm == nil && projects(kind)
	medians := slices.Repeat([]float64{math.NaN()}, len(layers))
	firsts := slices.Clone(medians)
	if autoLR || autoStart || j.DoRelativeScale {
		var err error
		if medians, firsts, err = streamMedians(ctx, m, layers, completions); err != nil {
			return nil, err
		}
	}
	if j.Shared {
		medians, firsts = []float64{slices.Min(medians)}, []float64{slices.Min(firsts)}
	}
	root := math.Sqrt(float64(m.Info().Embd))
	s := &scales{}
	for i, median := range medians {
		unit, lr, start := 1.0, affineLR, 1.0
		if j.DoRelativeScale {
			unit = unitShare * firsts[i] / root
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
// layers: over all tokens of all examples but the first, whose norm is many times that of
// the others, and over these first ones.
func streamMedians(ctx context.Context, m model, layers []int, completions []completion) (medians, firsts []float64, err error) {
	texts := make([][]ggmlsteer.Token, len(completions))
	for i, c := range completions {
		texts[i] = c.tokens
	}
	norms, err := m.StreamNorms(ctx, texts, layers)
	if err != nil {
		return nil, nil, err
	}
	for l, layer := range layers {
		var all, first []float64
		for i, c := range completions {
			from := 1
			if i > 0 && completions[i-1].example == c.example {
				from = c.prompt // the prompt was counted
			} else {
				first = append(first, norms[l][i][0])
			}
			all = append(all, norms[l][i][from:]...)
		}
		medians, firsts = append(medians, median(all)), append(firsts, median(first))
		if !above0.holds(medians[l]) || !above0.holds(firsts[l]) {
			return nil, nil, &loader.InputError{
				Message: fmt.Sprintf("the residual stream at layer %d has the median norm %v, at position 0 %v, and no step size can be chosen from it", layer, medians[l], firsts[l]),
				Hint:    "give lr and starting_norm as numbers",
			}
		}
	}
	return medians, firsts, nil
}

// median is the middle value, or the mean of the two in the middle.
func median(x []float64) float64 {
	x = slices.Sorted(slices.Values(x))
	n := len(x)
	return (x[(n-1)/2] + x[n/2]) / 2
}

package optimize

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"

	"github.com/llsteer/llsteer/loader"
)

// rows are all rows of a layer's parameters: its vector, then those of its matrices.
func rows(p loader.Parameters) [][]float32 {
	return slices.Concat([][]float32{p.Vector}, p.Left, p.Right)
}

// clone copies parameters, rows and all.
func clone(params []loader.Parameters) []loader.Parameters {
	c := slices.Clone(params)
	for i, p := range params {
		c[i] = loader.Parameters{Vector: slices.Clone(p.Vector), Left: slices.Clone(p.Left), Right: slices.Clone(p.Right)}
		for k := range p.Left {
			c[i].Left[k], c[i].Right[k] = slices.Clone(p.Left[k]), slices.Clone(p.Right[k])
		}
	}
	return c
}

// limit scales a vector that is longer than most down to that norm.
func limit(v []float32, most float64) {
	n := norm(v)
	if n <= most {
		return
	}
	for i, x := range v {
		v[i] = float32(float64(x) * (most / n))
	}
}

// randomDirection is a vector of the norm whose direction is uniform on the sphere:
// normal numbers from a PCG generator seeded with the run's seed and the layer. So a layer
// starts alike whichever others are steered.
func randomDirection(seed uint64, layer, embd int, length float64) []float32 {
	random := rand.New(rand.NewPCG(seed, uint64(layer)))
	normal := make([]float64, embd)
	square := 0.0
	for i := range normal {
		normal[i] = random.NormFloat64()
		square += normal[i] * normal[i]
	}
	v := make([]float32, embd)
	for i, x := range normal {
		v[i] = float32(x * length / math.Sqrt(square))
	}
	return v
}

// layerKeys names the parameters of a run as job files, reports and traces do.
func (j *Job) layerKeys(layers []int) []string {
	if j.Shared {
		return []string{sharedKey}
	}
	keys := make([]string, len(layers))
	for i, l := range layers {
		keys[i] = strconv.Itoa(l)
	}
	return keys
}

// startingNorm is the norm of a random start.
func (j *Job) startingNorm() float64 {
	if j.StartingNorm != nil {
		return *j.StartingNorm
	}
	return 1
}

// startAt returns the parameters to start from: those that the job gives, and
// random ones where it gives none. Shared ones are drawn as the lowest layer's.
func (j *Job) startAt(layers []int, embd int) ([]loader.Parameters, error) {
	keys := j.layerKeys(layers)
	for key := range j.Start {
		if !slices.Contains(keys, key) {
			return nil, &loader.InputError{
				Message: fmt.Sprintf("start.%s: that is not steered", key),
				Hint:    "this job steers " + strings.Join(keys, ", "),
			}
		}
	}
	params := make([]loader.Parameters, len(keys))
	for i, key := range keys {
		given, ok := j.Start[key]
		if !ok {
			params[i].Vector = randomDirection(j.Seed, layers[i], embd, j.startingNorm())
			if !finite(params[i].Vector) {
				return nil, badJob("starting_norm", "expected a norm that float32 holds, found %v", j.startingNorm())
			}
			continue
		}
		switch {
		case len(given.Left)+len(given.Right) > 0:
			return nil, badJob("start."+key, "a matrix is for affine steering, which this release does not have")
		case len(given.Vector) != embd:
			return nil, badJob("start."+key+".vector", "expected the model's width of %d numbers, found %d", embd, len(given.Vector))
		case !finite(given.Vector):
			return nil, badJob("start."+key+".vector", "expected finite numbers")
		}
		params[i].Vector = slices.Clone(given.Vector)
	}
	return params, nil
}

func finite(v []float32) bool {
	return !slices.ContainsFunc(v, func(x float32) bool { return x-x != 0 })
}

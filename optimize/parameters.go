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
// normal numbers from a PCG generator seeded with the run's seed and what is drawn, for a
// vector its layer. So a layer starts alike whichever others are steered.
func randomDirection(seed, stream uint64, embd int, length float64) []float32 {
	random := rand.New(rand.NewPCG(seed, stream))
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

// startAt returns the parameters to start from: those that the job gives, and
// random ones of these norms where it gives none. Shared ones are drawn as the lowest
// layer's.
func (j *Job) startAt(layers []int, embd int, norms []float64) ([]loader.Parameters, error) {
	keys := j.layerKeys(layers)
	params := make([]loader.Parameters, len(keys))
	for i, key := range keys {
		if given, ok := j.Start[key]; ok {
			params[i] = clone([]loader.Parameters{given})[0]
			continue
		}
		params[i] = j.randomStart(layers[i], embd, norms[i])
		if slices.ContainsFunc(rows(params[i]), func(row []float32) bool { return !finite(row) }) {
			return nil, badJob("starting_norm", "expected a norm that float32 holds, found %v", norms[i])
		}
	}
	return params, nil
}

// checkStart refuses parameters to start from that are not for these layers.
func (j *Job) checkStart(layers []int, embd int) error {
	keys := j.layerKeys(layers)
	rank := 0
	if j.AffineRank != nil {
		rank = *j.AffineRank
	}
	for key, given := range j.Start {
		at := "start." + key
		switch {
		case !slices.Contains(keys, key):
			return &loader.InputError{
				Message: at + ": that is not steered",
				Hint:    "this job steers " + strings.Join(keys, ", "),
			}
		case rank == 0 && len(given.Left)+len(given.Right) > 0:
			return badJob(at, "a matrix is for affine steering: give affine_rank, too")
		case len(given.Left) != rank || len(given.Right) != rank:
			return badJob(at, "expected left and right of affine_rank %d rows, found %d and %d", rank, len(given.Left), len(given.Right))
		case projects(j.Kind()) && norm(given.Vector) == 0:
			return badJob(at+".vector", "%s steering takes the stream's part along v, and v = 0 has no direction", j.Kind())
		}
		for i, row := range rows(given) {
			name := at + ".vector"
			if i > 0 {
				name = fmt.Sprintf("%s.left[%d]", at, i-1)
			}
			if i > rank {
				name = fmt.Sprintf("%s.right[%d]", at, i-1-rank)
			}
			switch {
			case len(row) != embd:
				return badJob(name, "expected the model's width of %d numbers, found %d", embd, len(row))
			case !finite(row):
				return badJob(name, "expected finite numbers")
			}
		}
	}
	return nil
}

// randomStart draws a layer's parameters: each row a direction of its own.
func (j *Job) randomStart(layer, embd int, vectorNorm float64) loader.Parameters {
	p := loader.Parameters{Vector: randomDirection(j.Seed, uint64(layer), embd, vectorNorm)}
	if j.AffineRank == nil {
		return p
	}
	for r := range *j.AffineRank {
		stream := uint64(layer) | uint64(2*r+1)<<32
		p.Left = append(p.Left, randomDirection(j.Seed, stream, embd, j.startingAffineNorm()))
		p.Right = append(p.Right, randomDirection(j.Seed, stream+1<<32, embd, j.startingAffineNorm()))
	}
	return p
}

func (j *Job) startingAffineNorm() float64 {
	switch {
	case j.StartingAffineNorm != nil:
		return *j.StartingAffineNorm
	case j.LR == nil:
		return 0.1
	}
	return 1
}

func finite(v []float32) bool {
	return !slices.ContainsFunc(v, func(x float32) bool { return x-x != 0 })
}

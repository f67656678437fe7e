package optimize

import (
	"context"
	"encoding/binary"
	"hash/fnv"
	"math/rand/v2"
	"slices"

	"github.com/llsteer/llsteer/loader"
)

// A noise moves the vectors before each evaluation of a loss (docs/steering.md, section 6).
type noise struct {
	job *Job
	// tangents[i][k] is the gradient of completion i's loss by the vector of parameters
	// k, at v = 0 and M = 0; nil where nothing is projected out.
	tangents [][][]float64
	// draw gives width standard normal numbers.
	draw func(at drawing, width int) []float64
}

// A drawing names a draw: another one has other numbers.
type drawing struct {
	iter, draw int
	completion int // among all of the job
	params     int
}

// seeded draws numbers that depend on the run's seed and the drawing alone.
func seeded(seed uint64) func(drawing, int) []float64 {
	return func(at drawing, width int) []float64 {
		h := fnv.New64a()
		for _, n := range []int{at.iter, at.draw, at.completion, at.params} {
			_ = binary.Write(h, binary.LittleEndian, uint64(n)) // a hash takes everything
		}
		random := rand.New(rand.NewPCG(seed, h.Sum64()))
		numbers := make([]float64, width)
		for i := range numbers {
			numbers[i] = random.NormFloat64()
		}
		return numbers
	}
}

// of is what is added to a vector: with n the draw, scale·n;
// of anti-PGD scale·(n − n'), n' the draw one step earlier; or n without its part
// along the tangent g, n − (n·g/‖g‖²) g, with abl_relu only where n·g < 0.
func (z *noise) of(at drawing, index, width int) []float64 {
	n := z.draw(at, width)
	switch {
	case z.job.DoAntipgd && at.iter > 0:
		before := at
		before.iter--
		for i, x := range z.draw(before, width) {
			n[i] -= x
		}
	case z.tangents != nil:
		g := z.tangents[index][at.params]
		square, along := 0.0, 0.0
		for i := range g {
			square += g[i] * g[i]
			along += n[i] * g[i]
		}
		if square == 0 || z.job.DoNoiseAblRelu && along >= 0 {
			break
		}
		for i := range g {
			n[i] -= along / square * g[i]
		}
	}
	for i := range n {
		n[i] *= *z.job.NoiseScale
	}
	return n
}

// sets are the parameters at which each completion is evaluated.
func (z *noise) sets(params []loader.Parameters, iter, draw int, completions []completion) [][]loader.Parameters {
	sets := make([][]loader.Parameters, len(completions))
	for i, c := range completions {
		sets[i] = slices.Clone(params)
		for k, p := range params {
			v := doubles(p.Vector)
			for n, x := range z.of(drawing{iter, draw, c.id, k}, i, len(v)) {
				v[n] += x
			}
			sets[i][k].Vector = singles(v)
		}
	}
	return sets
}

// findTangents evaluates the gradient of each completion's own loss where nothing
// is steered.
func (z *noise) findTangents(ctx context.Context, o *objective, params []loader.Parameters) error {
	if !z.job.DoTangentSpaceNoise || z.job.DoAntipgd {
		return nil
	}
	nothing := clone(params)
	for _, p := range nothing {
		for _, row := range rows(p) {
			clear(row)
		}
	}
	sets := slices.Repeat([][]loader.Parameters{nothing}, len(o.completions))
	_, slopes, err := o.forward(ctx, sets)
	if err != nil {
		return err
	}
	gradients, err := o.backward(ctx, sets, slopes)
	if err != nil {
		return err
	}
	z.tangents = make([][][]float64, len(sets))
	for i, of := range gradients {
		for _, param := range of {
			z.tangents[i] = append(z.tangents[i], param[0])
		}
	}
	return nil
}

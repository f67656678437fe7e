package optimize

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/llsteer/llsteer/ggmlsteer"
	"github.com/llsteer/llsteer/loader"
)

// CheckTolerance is the largest relative error of a gradient that passes a Check.
//
// A loss that is computed in float32 is off by about 1e-6 nats. The steps of a
// check change it by 0.03 nats and more, so that rounding leaves relative errors of 5e-5, and
// what is left of truncation is as much again. Seen on models of 6 to 270 million
// parameters, 54 layers and seeds: 6e-6 to 4e-4. A term that is missing or wrong costs percents.
const CheckTolerance = 1e-3

// BF16Tolerance is that of a job in precision BF16, whose gradient a Check compares with
// differences in F32: products of 16 bits cost no more than this share of a gradient.
const BF16Tolerance = 3e-2

// A Checked is the outcome of Check.
type Checked struct {
	Layers         map[string]LayerCheck // by layer, or "shared"
	SecondsPerStep float64               // median, of an evaluation with its gradient
	Tolerance      float64               // of the relative errors
}

// A LayerCheck compares the gradient with respect to one layer's vector.
type LayerCheck struct {
	GradientNorm float64
	// RelativeError is the larger of two estimates of ‖error of g‖ / ‖g‖:
	//
	//	|D(u) − ‖g‖| / ‖g‖                   u = g / ‖g‖
	//	√width · rms of |D(r) − r·g| / ‖g‖    r random directions
	//
	// with D the derivative by differences. The first sees wrong factors; a random
	// direction sees 1/√width of any error, whence the factor.
	RelativeError float64
}

// OK says whether every gradient is within the tolerance.
func (c *Checked) OK() bool {
	for _, layer := range c.Layers {
		if !(layer.RelativeError <= c.Tolerance) { // NaN is not within
			return false
		}
	}
	return len(c.Layers) > 0
}

// Check compares the gradient of a job's losses, where the job starts, with central
// differences, layer by layer. Regularizers, which no model takes part in, are left
// out. each, if not nil, is called after every layer.
//
// What the user can mend is an *InputError: a job that Run would refuse, and one
// whose losses do not depend on a layer's vector.
func Check(ctx context.Context, m *ggmlsteer.Model, job *Job, each func(layer string, c LayerCheck)) (*Checked, error) {
	return check(ctx, engine{m}, job, each)
}

func check(ctx context.Context, m model, job *Job, each func(string, LayerCheck)) (*Checked, error) {
	s, err := newSetup(ctx, m, job)
	if err != nil {
		return nil, err
	}
	bf16 := job.Precision == ggmlsteer.BF16
	scales, _, err := streamMedians(ctx, m, s.layers, s.completions)
	if err != nil {
		return nil, err
	}
	if job.Shared {
		scales = []float64{slices.Min(scales)}
	}
	objective := s.objective()
	objective.noise = nil
	if err := objective.open(objective.all); err != nil {
		return nil, err
	}
	defer objective.close()
	gradient, seconds, err := timedGradient(ctx, objective, s.params)
	if err != nil {
		return nil, err
	}
	checked := &Checked{Layers: map[string]LayerCheck{}, SecondsPerStep: seconds, Tolerance: CheckTolerance}
	if bf16 { // the differences are of the function itself, in float32
		exact := *job
		exact.Precision = ggmlsteer.F32
		objective.job = &exact
		checked.Tolerance = BF16Tolerance
		if err := objective.open(objective.all); err != nil {
			return nil, err
		}
	}
	for i, key := range s.keys {
		if l2 := dot(gradient[i], gradient[i]); l2-l2 != 0 {
			return nil, fmt.Errorf("layer %s: the gradient is not finite", key)
		}
		l := layerCheck{objective: objective, params: s.params, at: i, gradient: gradient[i], scale: scales[i]}
		random := rand.New(rand.NewPCG(job.Seed, uint64(s.layers[i])))
		checked.Layers[key], err = l.run(ctx, random)
		if errors.Is(err, errFlat) {
			return nil, &loader.InputError{
				Message: fmt.Sprintf("layer %s: the losses do not depend on its vector", key),
				Hint:    "the examples' token leaves out whatever their completions depend on, or eps is above their probabilities",
			}
		}
		if err != nil {
			return nil, err
		}
		if each != nil {
			each(key, checked.Layers[key])
		}
	}
	return checked, nil
}

// timedGradient is the gradient by the vectors, without regularizers, and the median time of an
// evaluation; the first, which warms up, is not counted.
func timedGradient(ctx context.Context, o *objective, params []loader.Parameters) (gradient [][]float64, seconds float64, err error) {
	const timed = 3
	var all []float64
	for range 1 + timed {
		began := time.Now()
		sets := [][]loader.Parameters{params}
		losses, slopes, err := o.forward(ctx, sets)
		if err != nil {
			return nil, 0, err
		}
		for i, c := range o.completions {
			scale(slopes[i], o.job.objectiveSlope(losses[i], c.target))
		}
		of, err := o.backward(ctx, sets, slopes)
		if err != nil {
			return nil, 0, err
		}
		gradient = nil
		for _, rows := range of[0] {
			gradient = append(gradient, rows[0])
		}
		all = append(all, time.Since(began).Seconds())
	}
	return gradient, median(all[1:]), nil
}

// A layerCheck is the check of one layer's gradient.
type layerCheck struct {
	objective *objective
	params    []loader.Parameters
	at        int // index of the layer's parameters
	gradient  []float64
	scale     float64 // of the residual stream: its median norm
}

// errFlat: gradient and differences are 0.
var errFlat = errors.New("gradient and differences are 0")

func (l *layerCheck) run(ctx context.Context, random *rand.Rand) (LayerCheck, error) {
	const randoms = 2
	width := len(l.gradient)
	length := math.Sqrt(dot(l.gradient, l.gradient))
	c := LayerCheck{GradientNorm: length}

	along, difference := 0.0, 0.0 // the gradient; differences are signed
	if length != 0 {
		var err error
		if along, err = l.derivative(ctx, scaled(l.gradient, 1/length), firstStep); err != nil {
			return c, err
		}
		difference = along - length
	}
	squares, square := 0.0, 0.0 // of the errors, and of the derivatives themselves
	for range randoms {
		r := make([]float64, width)
		for i := range r {
			r[i] = random.NormFloat64()
		}
		r = scaled(r, 1/math.Sqrt(dot(r, r)))
		d, err := l.derivative(ctx, r, randomStep(width))
		if err != nil {
			return c, err
		}
		e := d - dot(r, l.gradient)
		squares += e * e
		square += d * d
	}
	// the norm that a gradient of these derivatives has: a gradient that is 0, or
	// too small, is no excuse
	expected := math.Sqrt(float64(width) * square / randoms)
	norm := max(length, math.Abs(along))
	if length == 0 {
		norm = expected
	}
	if norm == 0 {
		return c, errFlat
	}
	c.RelativeError = max(math.Abs(difference), math.Sqrt(float64(width)*squares/randoms)) / norm
	return c, nil
}

// Steps of the differences along the gradient, as shares of the residual stream's
// norm: the first, and each later one half of the one before. Measured on the demo
// model, SmolLM2 135M and Gemma 3 270M at their first, middle and last layers: over this range
// truncation, h² and after extrapolation h⁴, gives way to rounding.
const (
	firstStep = 1.0 / 128
	halvings  = 4
)

// randomStep is the first step along a random direction. It has 1/√width of the
// gradient's in it and bends the loss as much less, so it can be longer: on those
// models, by a sixth of √width.
func randomStep(width int) float64 {
	return min(firstStep*max(1, math.Sqrt(float64(width))/6), 1.0/8)
}

// derivative is that of the objective along a direction, by central differences
// at several steps: Richardson's extrapolation of each step with the next one, and the
// mean of the two neighbours that agree best. The coarser of them has more truncation, the
// finer more rounding; the choice knows nothing of the gradient that it is compared with.
func (l *layerCheck) derivative(ctx context.Context, direction []float64, first float64) (float64, error) {
	var differences, extrapolated []float64
	for k := range 1 + halvings {
		h := math.Ldexp(first*l.scale, -k)
		up, err := l.value(ctx, direction, h)
		if err != nil {
			return 0, err
		}
		down, err := l.value(ctx, direction, -h)
		if err != nil {
			return 0, err
		}
		differences = append(differences, (up-down)/(2*h))
		if k > 0 {
			extrapolated = append(extrapolated, (4*differences[k]-differences[k-1])/3)
		}
	}
	best, apart := math.NaN(), math.Inf(1)
	for k := 1; k < len(extrapolated); k++ {
		if d := math.Abs(extrapolated[k] - extrapolated[k-1]); d < apart {
			best, apart = (extrapolated[k]+extrapolated[k-1])/2, d
		}
	}
	return best, nil
}

// value is what is descended in, without regularizers, h along a direction.
func (l *layerCheck) value(ctx context.Context, direction []float64, h float64) (float64, error) {
	params := slices.Clone(l.params)
	v := slices.Clone(params[l.at].Vector)
	for i, d := range direction {
		v[i] = float32(float64(v[i]) + h*d)
	}
	params[l.at].Vector = v
	losses, _, err := l.objective.forward(ctx, [][]loader.Parameters{params})
	if err != nil {
		return 0, err
	}
	sum := 0.0
	for i, c := range l.objective.completions {
		if l.objective.job.Satisfice {
			losses[i] = (losses[i] - *c.target) * (losses[i] - *c.target)
		}
		sum += losses[i]
	}
	return sum, nil
}

func dot(a, b []float64) float64 {
	sum := 0.0
	for i, x := range a {
		sum += x * b[i]
	}
	return sum
}

func scaled(v []float64, factor float64) []float64 {
	w := make([]float64, len(v))
	for i, x := range v {
		w[i] = factor * x
	}
	return w
}

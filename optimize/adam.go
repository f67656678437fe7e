package optimize

import (
	"math"
	"slices"

	"github.com/llsteer/llsteer/loader"
)

// An optimizer makes steps. Each evaluation is at parameters that it made; the first is at the
// start.
type optimizer interface {
	// accepts is told of an evaluation and says whether it ends a step.
	accepts(params, gradient []loader.Parameters, loss float64) bool
	// step begins a step from the evaluation that was accepted last: it sets params.
	step(params []loader.Parameters)
	// retreat sets params to another step in place of the one that was not accepted.
	retreat(params []loader.Parameters)
	// fits says whether its state, which JSON holds, is that of an optimizer which made a
	// step of rows of these widths.
	fits(widths []int) bool
}

// Values of the option optimizer.
const (
	optimizerAdam   = "adam"
	optimizerBundle = "bundle"
)

// optimizer is the one that the job asks for.
func (s *setup) optimizer() optimizer {
	if s.job.Optimizer == optimizerBundle {
		return newBundle(s.scales.lr, s.totalTarget())
	}
	return newAdam(s.scales.lr)
}

// totalTarget is the total loss to go to: target_loss, or the sum of the targets that the
// completions are compared with one by one; nil: none.
func (s *setup) totalTarget() *float64 {
	if s.job.DoTargetLossSum {
		return s.job.TargetLoss
	}
	total := 0.0
	for _, c := range s.completions {
		if c.target != nil {
			total += *c.target
		}
	}
	return &total
}

// An adam holds the state of Adam (Kingma and Ba, arXiv 1412.6980, algorithm 1)
// for the parameters of several layers.
type adam struct {
	lr                []float64 // of each layer's parameters
	beta1, beta2, eps float64
	Steps             int
	First, Second     [][]float64 // moments of each row, layer by layer
	gradient          []loader.Parameters
}

func newAdam(lr []float64) *adam {
	return &adam{lr: lr, beta1: 0.9, beta2: 0.999, eps: 1e-8}
}

// accepts every evaluation: Adam does not look at the loss.
func (a *adam) accepts(_, gradient []loader.Parameters, _ float64) bool {
	a.gradient = gradient
	return true
}

func (a *adam) retreat([]loader.Parameters) {}

// step moves params, in place, against the gradient.
func (a *adam) step(params []loader.Parameters) {
	a.Steps++
	bias1 := 1 - math.Pow(a.beta1, float64(a.Steps))
	bias2 := 1 - math.Pow(a.beta2, float64(a.Steps))
	k := 0
	for i := range params {
		slopes := rows(a.gradient[i])
		for j, row := range rows(params[i]) {
			if k == len(a.First) {
				a.First = append(a.First, make([]float64, len(row)))
				a.Second = append(a.Second, make([]float64, len(row)))
			}
			first, second := a.First[k], a.Second[k]
			k++
			for n := range row {
				g := float64(slopes[j][n])
				first[n] = a.beta1*first[n] + (1-a.beta1)*g
				second[n] = a.beta2*second[n] + (1-a.beta2)*g*g
				move := a.lr[i] * (first[n] / bias1) / (math.Sqrt(second[n]/bias2) + a.eps)
				row[n] = float32(float64(row[n]) - move)
			}
		}
	}
}

func (a *adam) fits(widths []int) bool {
	return a.Steps > 0 && areOfWidths(a.First, widths) && areOfWidths(a.Second, widths)
}

// areOfWidths says whether rows have these widths.
func areOfWidths[T any](rows [][]T, widths []int) bool {
	return slices.EqualFunc(rows, widths, func(row []T, width int) bool { return len(row) == width })
}

package optimize

import (
	"math"

	"github.com/llsteer/llsteer/loader"
)

// An optimizer makes steps. Each evaluation is at parameters that it made; the first is at the
// start.
type optimizer interface {
	// accepts is told of an evaluation and says whether it ends a step.
	accepts(params, gradient []loader.Parameters, loss float64) bool
	// step begins a step from the evaluation that was accepted last: it sets params.
	step(params []loader.Parameters)
	// retreat sets params to a shorter step than the one that was not accepted.
	retreat(params []loader.Parameters)
}

// Values of the option optimizer.
const (
	optimizerAdam  = "adam"
	optimizerLBFGS = "lbfgs"
)

// newOptimizer is the one that the job asks for; lr is that of each layer's parameters.
func (o *Options) newOptimizer(lr []float64) optimizer {
	if o.Optimizer == optimizerLBFGS {
		return newLBFGS(lr)
	}
	return newAdam(lr)
}

// An adam holds the state of Adam (Kingma and Ba, arXiv 1412.6980, algorithm 1)
// for the parameters of several layers.
type adam struct {
	lr                []float64 // of each layer's parameters
	beta1, beta2, eps float64
	steps             int
	first, second     [][]float64 // moments of each row, layer by layer
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
	a.steps++
	bias1 := 1 - math.Pow(a.beta1, float64(a.steps))
	bias2 := 1 - math.Pow(a.beta2, float64(a.steps))
	k := 0
	for i := range params {
		slopes := rows(a.gradient[i])
		for j, row := range rows(params[i]) {
			if k == len(a.first) {
				a.first = append(a.first, make([]float64, len(row)))
				a.second = append(a.second, make([]float64, len(row)))
			}
			first, second := a.first[k], a.second[k]
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

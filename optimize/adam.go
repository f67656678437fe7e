package optimize

import (
	"math"

	"github.com/llsteer/llsteer/loader"
)

// An adam holds the state of Adam (Kingma and Ba, arXiv 1412.6980, algorithm 1)
// for the parameters of several layers.
type adam struct {
	lr                []float64 // of each layer's parameters
	beta1, beta2, eps float64
	steps             int
	first, second     [][]float64 // moments of each row, layer by layer
}

func newAdam(lr []float64) *adam {
	return &adam{lr: lr, beta1: 0.9, beta2: 0.999, eps: 1e-8}
}

// step moves params, in place, against gradient.
func (a *adam) step(params, gradient []loader.Parameters) {
	a.steps++
	bias1 := 1 - math.Pow(a.beta1, float64(a.steps))
	bias2 := 1 - math.Pow(a.beta2, float64(a.steps))
	k := 0
	for i := range params {
		slopes := rows(gradient[i])
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

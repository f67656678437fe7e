package optimize

import "math"

// regularize returns the terms that keep several vectors small and few,
//
//	regularization_weight · Σ‖v‖₁, or with max  · Σ max|v|
//	sparsity_weight · Σ‖v‖₂
//	entropy_weight · H(softmax of the norms ‖v‖₂)
//
// and adds their gradient to gradient, parallel to vectors. Where a norm has no
// gradient it is 0: at a zero vector, and for l1 at a zero component. That of
// max|v| is shared evenly among the components that are largest.
func (o *Options) regularize(vectors, gradient [][]float64) float64 {
	total := 0.0
	norms := make([]float64, len(vectors))
	for i, v := range vectors {
		var l1, top, ties float64
		for _, x := range v {
			magnitude := math.Abs(x)
			l1 += magnitude
			if magnitude > top {
				top, ties = magnitude, 0
			}
			if magnitude == top {
				ties++
			}
		}
		norms[i] = length(v)
		total += o.SparsityWeight * norms[i]
		term := l1
		if o.RegularizationType == "max" {
			term = top
		}
		total += o.RegularizationWeight * term
		for j, x := range v {
			magnitude := math.Abs(x)
			switch {
			case magnitude == 0:
			case o.RegularizationType != "max":
				gradient[i][j] += math.Copysign(o.RegularizationWeight, x)
			case magnitude == top:
				gradient[i][j] += math.Copysign(o.RegularizationWeight/ties, x)
			}
		}
	}
	entropy, slopes := softmaxEntropy(norms)
	total += o.EntropyWeight * entropy
	for i, v := range vectors {
		if norms[i] == 0 {
			continue
		}
		factor := (o.SparsityWeight + o.EntropyWeight*slopes[i]) / norms[i]
		for j, x := range v {
			gradient[i][j] += factor * x
		}
	}
	return total
}

// softmaxEntropy is H(q) = −Σ q log q of q = softmax(x), with its gradient −q·(log q + H).
func softmaxEntropy(x []float64) (entropy float64, gradient []float64) {
	sum := math.Inf(-1)
	for _, xi := range x {
		sum = logAdd(sum, xi)
	}
	for _, xi := range x {
		entropy -= math.Exp(xi-sum) * (xi - sum)
	}
	gradient = make([]float64, len(x))
	for i, xi := range x {
		gradient[i] = -math.Exp(xi-sum) * (xi - sum + entropy)
	}
	return entropy, gradient
}

// norm is ‖v‖₂.
func norm(v []float32) float64 { return length(doubles(v)) }

// length is ‖v‖₂.
func length(v []float64) float64 {
	square := 0.0
	for _, x := range v {
		square += x * x
	}
	return math.Sqrt(square)
}

package optimize

import (
	"math"

	"github.com/llsteer/llsteer/ggmlsteer"
)

// tokenLoss is a completion's loss at one token and its derivative with respect
// to log p, with p the token's probability:
//
//	dst                     −log(p + ε)
//	src, with one-minus     −log(1 − p + ε)
//	src, without            +log(p + ε)
func (o *Options) tokenLoss(src bool, p ggmlsteer.Prob) (loss, slope float64) {
	logEps := math.Log(o.Eps)
	if src && o.DoOneMinus {
		// from log(1 − p) and not from p: 1 − p has no digits left near p = 1
		complement := logAdd(p.LogComplement, logEps)
		return -complement, math.Exp(p.Log - complement)
	}
	sum := logAdd(p.Log, logEps)
	loss, slope = sum, math.Exp(p.Log-sum)
	if !src {
		loss, slope = -loss, -slope
	}
	return loss, slope
}

// logAdd is log(eᵃ + eᵇ).
func logAdd(a, b float64) float64 {
	if a < b {
		a, b = b, a
	}
	if math.IsInf(a, -1) {
		return a
	}
	return a + math.Log1p(math.Exp(b-a))
}

// completionLoss is the loss ℓ of a completion, which has a target under satisfice,
// and for each of its tokens the derivative of its part of the objective with respect to
// log p: of ℓ, or of (ℓ − target)².
func (o *Options) completionLoss(src bool, probs []ggmlsteer.Prob, target *float64) (loss float64, slopes []float64) {
	slopes = make([]float64, len(probs))
	for i, p := range probs {
		token, slope := o.tokenLoss(src, p)
		loss += token
		slopes[i] = slope
	}
	factor := 1.0
	if o.NormalizeTokenLength {
		factor = 1 / float64(len(probs))
	}
	loss *= factor
	if o.Satisfice {
		factor *= 2 * (loss - *target)
	}
	for i := range slopes {
		slopes[i] *= factor
	}
	return loss, slopes
}

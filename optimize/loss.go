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

// completionLoss is the loss ℓ of a completion and, for each of its tokens, its
// derivative with respect to log p.
func (o *Options) completionLoss(src bool, probs []ggmlsteer.Prob) (loss float64, slopes []float64) {
	slopes = make([]float64, len(probs))
	for i, p := range probs {
		token, slope := o.tokenLoss(src, p)
		loss += token
		slopes[i] = slope
	}
	if o.NormalizeTokenLength {
		loss /= float64(len(probs))
		for i := range slopes {
			slopes[i] /= float64(len(probs))
		}
	}
	return loss, slopes
}

// objectiveSlope is the derivative of a completion's part of the objective with respect to
// its loss ℓ: of ℓ, or under satisfice, where it has a target, of (ℓ − target)².
func (o *Options) objectiveSlope(loss float64, target *float64) float64 {
	if o.Satisfice {
		return 2 * (loss - *target)
	}
	return 1
}

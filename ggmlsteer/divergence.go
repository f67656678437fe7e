package ggmlsteer

import (
	"context"
	"math"
	"runtime"
)

// divergenceChunk bounds the logits that two decoders hold at once.
const divergenceChunk = 32

// Divergence is how far a decoder's distributions are from another's: the mean of
// KL(p ‖ q) = Σ p log(p/q) over the token after each of tokens, in nats. All of
// them count as a prompt. Both decoders forget what they had.
func Divergence(ctx context.Context, p, q *Decoder, tokens []Token) (float64, error) {
	for _, d := range []*Decoder{p, q} {
		if err := d.fits([][]Token{tokens}); err != nil {
			return 0, err
		}
		defer runtime.KeepAlive(d) // its logits are read after the last call
		d.Clear()
	}
	sum := 0.0
	for from := 0; from < len(tokens); from += divergenceChunk {
		chunk := tokens[from:min(from+divergenceChunk, len(tokens))]
		for _, d := range []*Decoder{p, q} {
			d.slots[0].prompt = len(tokens)
			if err := d.slots[0].Append(chunk...); err != nil {
				return 0, err
			}
			if err := d.decode(ctx, d.slots, from); err != nil {
				return 0, err
			}
		}
		for i := range chunk {
			rowP, err := p.slots[0].logitsAt(from + i)
			if err != nil {
				return 0, err
			}
			rowQ, err := q.slots[0].logitsAt(from + i)
			if err != nil {
				return 0, err
			}
			sum += divergence(rowP, rowQ)
		}
	}
	return sum / float64(len(tokens)), nil
}

// divergence is KL(softmax(p) ‖ softmax(q)).
func divergence(p, q []float32) float64 {
	logSumP, logSumQ := logSumExp(p), logSumExp(q)
	sum := 0.0
	for i := range p {
		log := float64(p[i]) - logSumP
		if weight := math.Exp(log); weight > 0 {
			sum += weight * (log - (float64(q[i]) - logSumQ))
		}
	}
	return sum
}

func logSumExp(logits []float32) float64 {
	top := math.Inf(-1)
	for _, z := range logits {
		top = math.Max(top, float64(z))
	}
	sum := 0.0
	for _, z := range logits {
		sum += math.Exp(float64(z) - top)
	}
	return top + math.Log(sum)
}

// probOf is the softmax of coldness·logits at one token.
func probOf(logits []float32, token Token, coldness float64) Prob {
	top := float64(logits[0])
	for _, z := range logits {
		top = math.Max(top, float64(z))
	}
	others := 0.0 // without the token, so that 1 − p is accurate when p is near 1
	for i, z := range logits {
		if Token(i) != token {
			others += math.Exp(coldness * (float64(z) - top))
		}
	}
	own := coldness * (float64(logits[token]) - top)
	sum := math.Log(others + math.Exp(own))
	return Prob{Log: own - sum, LogComplement: math.Log(others) - sum}
}

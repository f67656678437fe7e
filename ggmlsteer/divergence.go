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
		steps := make([]step, len(chunk))
		for i, t := range chunk {
			steps[i] = step{token: t, prompt: true, getLogits: true}
		}
		for _, d := range []*Decoder{p, q} {
			if err := d.decode(ctx, steps); err != nil {
				return 0, err
			}
		}
		for i := range chunk {
			rowP, err := p.logits(i)
			if err != nil {
				return 0, err
			}
			rowQ, err := q.logits(i)
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

// Package optimize finds steerings by gradient descent: objectives, optimizers
// and stopping rules. It holds no model code.
//
// Losses and probabilities are in nats. Vectors are float32, as the engine and
// the steering file have them, so that what is reported is bit for bit what was
// evaluated; everything between two evaluations is computed in float64.
package optimize

import "github.com/llsteer/llsteer/loader"

// Losses[i][0][k] is the loss in nats of the k-th src completion of example i,
// Losses[i][1][k] of the k-th dst completion. Empty lists are not nil.
type Losses [][2][]float64

// A Step is one evaluation of the objective. It is the receiver's to keep, but
// not to change.
type Step struct {
	Stage  int     // 2 in the output-constrained stage, whose steps number on from 0; otherwise 0
	Iter   int     // optimizer steps before it
	Loss   float64 // total, with regularizers
	Losses Losses
	Layers []LayerStep // parallel to the run's layers; one if shared
}

// LayerStep is one layer's part of a Step. Gradient is what the optimizer is
// given: of the total loss, or of Σ(ℓ − target)² and the regularizers under satisfice.
type LayerStep struct {
	Layer        string // "10", or "shared"
	Params       loader.Parameters
	Gradient     loader.Parameters
	Norm         float64
	GradientNorm float64
}

// Stop says why a run ended.
type Stop string

const (
	StopTarget      Stop = "target_loss"
	StopMaxIters    Stop = "max_iters"
	StopStalled     Stop = "stalled"
	StopInterrupted Stop = "interrupted"
)

// A Result describes the steering that a run found; Loss, Losses and Norms are
// those of Steering itself.
type Result struct {
	Steering          *loader.Steering
	Iters             int // optimizer steps whose outcome was evaluated
	Evaluations       int // of losses and gradient in the first stage, those of rejected steps too
	Stop              Stop
	Loss              float64
	Losses            Losses
	Norms             map[string]float64 // by layer, or "shared"
	LR                map[string]float64 // learning rate used, by layer, or "shared"
	OutputConstrained *OutputConstrained // nil: there was no such stage
	SecondsPerStep    float64            // median
	TokensPerStep     int                // that the engine computes, shared prompts once
}

// OutputConstrained tells of the output-constrained stage: what it did to the vectors'
// norm (the sum, of several) and to the losses.
type OutputConstrained struct {
	Iters                     int // optimizer steps
	NormBefore, NormAfter     float64
	LossesBefore, LossesAfter Losses
}

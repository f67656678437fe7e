// Package optimize finds steerings by gradient descent: objectives, optimizers
// and stopping rules. It holds no model code.
package optimize

import "github.com/llsteer/llsteer/loader"

// An Example asks for a prompt's completions to become likelier (Dst) or
// unlikelier (Src).
type Example struct {
	Prompt     string
	Src, Dst   []string
	SrcTargets []float64 // own target losses, one for each of Src; nil: Options.TargetLoss
	DstTargets []float64
	Token      *Span // tokens of prompt and completion that are steered; nil: all
	Negative   bool  // steer with −v
}

// Layers names layers before the model, and so their number, is known: a list,
// ranges, or all.
type Layers struct {
	All  bool
	List []int
}

// Options are the numbers and switches of docs/steering.md, with its names and
// defaults (see DefaultOptions). Pointers are nil where an option is not given.
type Options struct {
	LR                    *float64 // nil: from the scale of the residual stream
	MaxIters              *int
	Coldness              float64
	Eps                   float64
	StartingNorm          *float64
	MaxNorm               *float64
	TargetLoss            *float64
	DoTargetLossSum       bool
	TargetLossTargetIters int
	Satisfice             bool
	NormalizeTokenLength  bool
	DoOneMinus            bool
	OnlyHookPrompt        bool
	RegularizationWeight  float64
	RegularizationType    string // "l1" or "max"
	SparsityWeight        float64
	EntropyWeight         float64
	Seed                  uint64
}

// A Job is all that an optimization needs beside the model.
type Job struct {
	Options
	Layers   Layers
	Shared   bool // one vector on all layers
	Examples []Example
	Start    map[string]loader.Parameters // by layer, or "shared"; layers left out start at random
	Chat     bool                         // prompts are a user's turn in the model's chat template
	System   string
}

// Losses[i][0][k] is the loss in nats of the k-th src completion of example i,
// Losses[i][1][k] of the k-th dst completion. Empty lists are not nil.
type Losses [][2][]float64

// A Step is one evaluation of the objective.
type Step struct {
	Iter   int     // optimizer steps before it
	Loss   float64 // total, with regularizers
	Losses Losses
	Layers []LayerStep // parallel to the run's layers; one if shared
}

// LayerStep is one layer's part of a Step. Gradient is what the optimizer is given.
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
	Steering       *loader.Steering
	Iters          int
	Stop           Stop
	Loss           float64
	Losses         Losses
	Norms          map[string]float64 // by layer, or "shared"
	LR             map[string]float64 // learning rate used, by layer, or "shared"
	SecondsPerStep float64            // median
	TokensPerStep  int
}

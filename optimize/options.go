package optimize

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Options are the numbers and switches of docs/steering.md, with its names;
// DefaultOptions has their defaults. Pointers are nil where an option is not given.
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
	VectorClamp           *float64
	AffineRank            *int
	StartingAffineNorm    *float64
	MaxAffineNorm         float64
	NoiseScale            *float64
	NoiseIters            int
	DoTangentSpaceNoise   bool
	DoNoiseAblRelu        bool
	DoAntipgd             bool
	DoOutputConstr        bool
	OutputConstrLR        *float64
	MaxOutputConstrIters  *int
	OutputConstrObjective string // "norm" or "melbo"
	MelboLayer            *int
	MinibatchSize         int
	RegularizationWeight  float64
	RegularizationType    string // "l1" or "max"
	SparsityWeight        float64
	EntropyWeight         float64
	DoRelativeScale       bool
	Optimizer             string // "adam" or "bundle"
	Seed                  uint64
}

// FormulaName is what an option is called in the formulas of docs/steering.md.
func (o Option) FormulaName() string {
	if o.Symbol != "" {
		return o.Symbol
	}
	return o.Name
}

// DefaultOptions are what holds where nothing is given.
func DefaultOptions() Options {
	return Options{
		Coldness:              0.7,
		Eps:                   1e-6,
		DoTargetLossSum:       true,
		TargetLossTargetIters: 1,
		DoOneMinus:            true,
		MaxAffineNorm:         2,
		NoiseIters:            1,
		DoTangentSpaceNoise:   true,
		OutputConstrObjective: objectiveNorm,
		MinibatchSize:         5,
		Optimizer:             optimizerAdam,
		RegularizationWeight:  0.01,
		RegularizationType:    "l1",
		SparsityWeight:        0.1,
		EntropyWeight:         0.01,
	}
}

// An Option is one field of Options as flags, job files and documentation show it.
type Option struct {
	Name    string   // key of the job file; the flag has dashes for the underscores
	Symbol  string   // its sign in the formulas of docs/steering.md; "" where they have the name
	Type    string   // "number", "count", "bool" or "choice"
	Choices []string // of a choice
	Default string   // as Set takes it
	Help    string   // one line, without the default

	field  func(*Options) any // pointer to the field
	values *interval          // of a number or count
	absent string             // the word for a value that is not given; "" if there has to be one
}

// An interval is what a number may be.
type interval struct {
	text string // behind "a number"
	min  float64
	open bool // min itself is not in it
}

var (
	anyNumber = &interval{"", -math.MaxFloat64, false}
	above0    = &interval{" above 0", 0, true}
	from0     = &interval{" from 0 on", 0, false}
	from1     = &interval{" from 1 on", 1, false}
)

func (i *interval) holds(x float64) bool { // false for NaN
	return x >= i.min && x <= math.MaxFloat64 && !(i.open && x == i.min)
}

var optionTable = []Option{
	{Name: "lr", values: above0, absent: "auto", field: func(o *Options) any { return &o.LR },
		Help: "Adam's learning rate, and what the optimizer bundle measures a layer's parameters in; auto: 1 % of the residual stream's median norm, over √width"},
	{Name: "max_iters", values: from0, absent: "none", field: func(o *Options) any { return &o.MaxIters },
		Help: "most optimizer steps; 0 evaluates the start"},
	{Name: "target_loss", Symbol: "target", values: anyNumber, absent: "none", field: func(o *Options) any { return &o.TargetLoss },
		Help: "stop once the total loss (nats) is at most this"},
	{Name: "do_target_loss_sum", field: func(o *Options) any { return &o.DoTargetLossSum },
		Help: "false: stop once each completion's loss is at most its own target, or else target_loss"},
	{Name: "target_loss_target_iters", values: from1, field: func(o *Options) any { return &o.TargetLossTargetIters },
		Help: "patience: steps in a row that meet the target, or that hardly change the loss, before the run stops"},
	{Name: "satisfice", field: func(o *Options) any { return &o.Satisfice },
		Help: "descend in (ℓ − target)² of each completion's loss ℓ, so that losses stay at their targets"},
	{Name: "max_norm", values: above0, absent: "none", field: func(o *Options) any { return &o.MaxNorm },
		Help: "after each step, a longer vector is scaled down to this norm ‖v‖₂"},
	{Name: "starting_norm", values: from0, absent: "auto", field: func(o *Options) any { return &o.StartingNorm },
		Help: "norm ‖v‖₂ of the random start; auto: 1, for clamp and ablation 2 % of the stream's median norm"},
	{Name: "coldness", Symbol: "κ", values: above0, field: func(o *Options) any { return &o.Coldness },
		Help: "factor of the logits; 1 is the model's own probability"},
	{Name: "eps", Symbol: "ε", values: from0, field: func(o *Options) any { return &o.Eps },
		Help: "added to each probability before its logarithm; a change of the loss below it counts as none"},
	{Name: "normalize_token_length", field: func(o *Options) any { return &o.NormalizeTokenLength },
		Help: "divide each completion's loss by its number of tokens"},
	{Name: "do_one_minus", field: func(o *Options) any { return &o.DoOneMinus },
		Help: "loss of src completions is −Σ log(1 − p + ε); false: +Σ log(p + ε)"},
	{Name: "only_hook_prompt", field: func(o *Options) any { return &o.OnlyHookPrompt },
		Help: "steer the prompt's tokens only, whatever the examples' token says"},
	{Name: "vector_clamp", Symbol: "c", values: anyNumber, absent: "none", field: func(o *Options) any { return &o.VectorClamp },
		Help: "clamp steering: the stream's part along v becomes c·v; 0 ablates it"},
	{Name: "affine_rank", Symbol: "r", values: from1, absent: "none", field: func(o *Options) any { return &o.AffineRank },
		Help: "affine steering: a matrix LᵀR of this rank besides the vector"},
	{Name: "starting_affine_norm", values: from0, absent: "auto", field: func(o *Options) any { return &o.StartingAffineNorm },
		Help: "norm of each row of the random L and R; auto: 0.1 if lr is auto, or else 1"},
	{Name: "max_affine_norm", values: above0, field: func(o *Options) any { return &o.MaxAffineNorm },
		Help: "after each step, longer rows of L and R are scaled down to this norm"},
	{Name: "noise_scale", values: above0, absent: "none", field: func(o *Options) any { return &o.NoiseScale },
		Help: "each evaluation is at v plus normal noise of this standard deviation in every component"},
	{Name: "noise_iters", values: from1, field: func(o *Options) any { return &o.NoiseIters },
		Help: "draws of noise over which loss and gradient are averaged"},
	{Name: "do_tangent_space_noise", field: func(o *Options) any { return &o.DoTangentSpaceNoise },
		Help: "take out of the noise its part along the gradient at v = 0"},
	{Name: "do_noise_abl_relu", field: func(o *Options) any { return &o.DoNoiseAblRelu },
		Help: "take that part out only where it would lower the loss"},
	{Name: "do_antipgd", field: func(o *Options) any { return &o.DoAntipgd },
		Help: "noise is the difference of two draws that follow each other, without that projection"},
	{Name: "do_output_constr", field: func(o *Options) any { return &o.DoOutputConstr },
		Help: "then shrink the vector without letting any loss rise"},
	{Name: "output_constr_lr", values: above0, absent: "auto", field: func(o *Options) any { return &o.OutputConstrLR },
		Help: "Adamax's learning rate in that stage; auto: lr, or a fifth of an automatic lr"},
	{Name: "max_output_constr_iters", values: from0, absent: "none", field: func(o *Options) any { return &o.MaxOutputConstrIters },
		Help: "most steps of that stage"},
	{Name: "output_constr_objective", Choices: []string{objectiveNorm, objectiveMelbo}, field: func(o *Options) any { return &o.OutputConstrObjective },
		Help: "what that stage makes small: norm, ‖v‖₂ + ‖LᵀR‖F; melbo, minus the change of the stream at melbo_layer"},
	{Name: "melbo_layer", values: from0, absent: "none", field: func(o *Options) any { return &o.MelboLayer },
		Help: "layer whose input melbo looks at, above the steered ones"},
	{Name: "minibatch_size", values: from1, field: func(o *Options) any { return &o.MinibatchSize },
		Help: "prompts of a step, where the job has prompts in place of examples"},
	{Name: "regularization_weight", values: from0, field: func(o *Options) any { return &o.RegularizationWeight },
		Help: "several layers, a vector each: factor of Σ‖v‖₁, or of what regularization_type says"},
	{Name: "regularization_type", Choices: []string{"l1", "max"}, field: func(o *Options) any { return &o.RegularizationType },
		Help: "several layers, a vector each: l1 is Σ‖v‖₁, max is Σ max|v|"},
	{Name: "sparsity_weight", values: from0, field: func(o *Options) any { return &o.SparsityWeight },
		Help: "several layers, a vector each: factor of Σ‖v‖₂, which empties whole layers"},
	{Name: "entropy_weight", values: from0, field: func(o *Options) any { return &o.EntropyWeight },
		Help: "several layers, a vector each: factor of H(softmax of the norms ‖v‖₂), which makes one layer win"},
	{Name: "do_relative_scale", field: func(o *Options) any { return &o.DoRelativeScale },
		Help: "measure each layer's vector, its lr and norms in units of 0.01 of the stream's norm at position 0 there, over √width; not with affine_rank"},
	{Name: "optimizer", Choices: []string{optimizerAdam, optimizerBundle}, field: func(o *Options) any { return &o.Optimizer },
		Help: "bundle meets a target in fewer evaluations; it goes without noise, minibatches and satisfice"},
	{Name: "seed", values: from0, field: func(o *Options) any { return &o.Seed },
		Help: "where random draws begin"},
}

// OptionTable returns every option, in the order in which to show them.
func OptionTable() []Option {
	table := slices.Clone(optionTable)
	defaults := DefaultOptions()
	for i := range table {
		o := &table[i]
		switch o.field(&defaults).(type) {
		case *bool:
			o.Type = "bool"
		case *string:
			o.Type = "choice"
		case *float64, **float64:
			o.Type = "number"
		default:
			o.Type = "count"
		}
		o.Default = o.absent
		if value := o.value(&defaults); value != nil {
			o.Default = fmt.Sprint(value)
		}
	}
	return table
}

// optionNamed returns the option of that name, or nil.
func optionNamed(name string) *Option {
	table := OptionTable()
	i := slices.IndexFunc(table, func(o Option) bool { return o.Name == name })
	if i < 0 {
		return nil
	}
	return &table[i]
}

// Set gives the option a value, written as Default is. An error says what was
// expected.
func (o Option) Set(options *Options, value string) error {
	wrong := fmt.Errorf("expected %s", o.expects())
	if o.absent != "" && value == o.absent {
		switch field := o.field(options).(type) {
		case **float64:
			*field = nil
		case **int:
			*field = nil
		}
		return nil
	}
	switch field := o.field(options).(type) {
	case *bool:
		b, err := strconv.ParseBool(value)
		if err != nil {
			return wrong
		}
		*field = b
	case *string:
		if !slices.Contains(o.Choices, value) {
			return wrong
		}
		*field = value
	case *float64, **float64:
		x, err := strconv.ParseFloat(value, 64)
		if err != nil || !o.values.holds(x) {
			return wrong
		}
		if at, ok := field.(*float64); ok {
			*at = x
		} else {
			*field.(**float64) = &x
		}
	case *int, **int:
		n, err := strconv.Atoi(value)
		if err != nil || !o.values.holds(float64(n)) {
			return wrong
		}
		if at, ok := field.(*int); ok {
			*at = n
		} else {
			*field.(**int) = &n
		}
	case *uint64:
		n, err := strconv.ParseUint(value, 10, 64)
		if err != nil {
			return wrong
		}
		*field = n
	}
	return nil
}

// expects says what Set takes.
func (o Option) expects() string {
	expected := "true or false"
	switch o.Type {
	case "choice":
		return strings.Join(o.Choices, " or ")
	case "count":
		expected = "a whole number" + o.values.text
	case "number":
		expected = "a number" + o.values.text
	}
	if o.absent != "" {
		expected += ", or " + o.absent
	}
	return expected
}

// value is nil, or the option's bool, string, float64, int or uint64.
func (o Option) value(options *Options) any {
	switch field := o.field(options).(type) {
	case *bool:
		return *field
	case *string:
		return *field
	case *float64:
		return *field
	case **float64:
		if *field != nil {
			return **field
		}
	case *int:
		return *field
	case **int:
		if *field != nil {
			return **field
		}
	case *uint64:
		return *field
	}
	return nil
}

// check is an error that says what was expected if a program gave the option a
// value that Set does not take.
func (o Option) check(options *Options) error {
	value, unchanged := o.value(options), *options
	if value == nil {
		return nil
	}
	return o.Set(&unchanged, fmt.Sprint(value))
}

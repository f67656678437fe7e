package optimize

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/llsteer/llsteer/ggmlsteer"
	"github.com/llsteer/llsteer/loader"
)

// A Job is all that an optimization needs beside the model.
type Job struct {
	Options
	Layers   Layers
	Shared   bool // one vector, and one matrix, on all layers, in place of one each
	Examples []Example
	// Prompts, in place of Examples, all have the completions Src and Dst; a step takes
	// MinibatchSize of them.
	Prompts  []string
	Src, Dst []string
	Start    map[string]loader.Parameters // by layer, or "shared"; layers left out start at random
	Chat     bool                         // prompts are a user's turn in the model's chat template
	System   string                       // system text, with Chat
	// ParseSpecial takes control tokens that are written in the texts, such as <eos>, as the tokens
	// that they name; otherwise they are plain text.
	ParseSpecial bool

	// OutputObjective, if not nil, is what the output-constrained stage makes small,
	// whatever OutputConstrObjective says. It is no part of a job file.
	OutputObjective OutputObjective

	// Precision of the model's evaluations: F32, for which Ordinary stands, too, or BF16. It is no
	// part of a job file.
	Precision ggmlsteer.Precision

	// Context is how many tokens a prompt and its completion may have; 0: the
	// model's training context. It is no part of a job file.
	Context int
}

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

// sharedKey stands for the layer of parameters that all layers share.
const sharedKey = "shared"

// A side is the src or the dst half of an example.
type side struct {
	key, targetsKey string // in a job file
	completions     []string
	targets         []float64 // nil, or one for each completion
}

// Minibatch says whether the job has prompts, a window of which makes a step.
func (j *Job) Minibatch() bool { return len(j.Prompts) > 0 }

// examples are the job's, or those that its prompts make.
func (j *Job) examples() []*Example {
	var all []*Example
	for i := range j.Examples {
		all = append(all, &j.Examples[i])
	}
	for _, prompt := range j.Prompts {
		all = append(all, &Example{Prompt: prompt, Src: j.Src, Dst: j.Dst})
	}
	return all
}

// exampleName is the key of one of examples.
func (j *Job) exampleName(i int) string {
	if j.Minibatch() {
		return fmt.Sprintf("prompts[%d]", i)
	}
	return fmt.Sprintf("examples[%d]", i)
}

// sides are in the order of Losses.
func (e *Example) sides() [2]side {
	return [2]side{
		{"src_completions", "src_completions_target_losses", e.Src, e.SrcTargets},
		{"dst_completions", "dst_completions_target_losses", e.Dst, e.DstTargets},
	}
}

// validate returns what is wrong with an example and, if it is one key, which.
func (e *Example) validate() (key string, err error) {
	if len(e.Src)+len(e.Dst) == 0 {
		return "", fmt.Errorf("expected src_completions, dst_completions or both, found neither")
	}
	for _, text := range e.Src {
		if slices.Contains(e.Dst, text) {
			return "", fmt.Errorf("the completion %q cannot become likely and unlikely: it is in src_completions and in dst_completions", shorten(text))
		}
	}
	for _, s := range e.sides() {
		if s.targets != nil && len(s.targets) != len(s.completions) {
			return s.targetsKey, fmt.Errorf("expected a target loss for each of the %d %s, found %d", len(s.completions), s.key, len(s.targets))
		}
		for _, t := range s.targets {
			if !anyNumber.holds(t) {
				return s.targetsKey, fmt.Errorf("expected finite numbers, found %v", t)
			}
		}
	}
	if e.Token != nil {
		if err := e.Token.validate(); err != nil {
			return "token", err
		}
	}
	return "", nil
}

// badJob is an error that names a key of the job.
func badJob(key, format string, args ...any) error {
	return &loader.InputError{Message: key + ": " + fmt.Sprintf(format, args...)}
}

// Validate is an *InputError that names the key if the job asks for something
// that makes no sense on any model.
func (j *Job) Validate() error {
	for _, o := range OptionTable() {
		if err := o.check(&j.Options); err != nil {
			return badJob(o.Name, "%v, found %v", err, o.value(&j.Options))
		}
	}
	if err := j.Layers.validate(); err != nil {
		return err
	}
	if j.System != "" && !j.Chat {
		return badJob("system", "a system text is for chat, which is off")
	}
	if j.ParseSpecial && j.Chat {
		return badJob("parse_special", "a chat's texts are plain, and its control tokens are the template's: leave out one of the two")
	}
	if j.Context < 0 {
		return badJob("context", "expected a number of tokens, found %d", j.Context)
	}
	if err := j.validateExamples(); err != nil {
		return err
	}
	return j.validateCombination()
}

func (j *Job) validateExamples() error {
	switch {
	case j.Minibatch() && len(j.Examples) > 0:
		return badJob("prompts", "a job has prompts or examples, not both")
	case j.Minibatch() && len(j.Src)+len(j.Dst) == 0:
		return badJob("prompts", "expected src_completions, dst_completions or both beside them, found neither")
	case !j.Minibatch() && len(j.Src) > 0:
		return badJob("src_completions", "beside examples they have none to follow: give prompts, or write them into an example")
	case !j.Minibatch() && len(j.Dst) > 0:
		return badJob("dst_completions", "beside examples they have none to follow: give prompts, or write them into an example")
	case !j.Minibatch() && len(j.Examples) == 0:
		return &loader.InputError{Message: "examples: the job has none", Hint: "an example is a prompt with src_completions, dst_completions or both"}
	}
	targets, without := 0, ""
	for i, e := range j.examples() {
		at := j.exampleName(i)
		if key, err := e.validate(); err != nil {
			return badJob(strings.TrimSuffix(at+"."+key, "."), "%v", err)
		}
		for _, s := range e.sides() {
			if s.targets != nil || j.TargetLoss != nil {
				targets += len(s.completions)
			} else if len(s.completions) > 0 && without == "" {
				without = at + "." + s.key
			}
		}
	}
	switch {
	case j.Satisfice && targets == 0:
		return badJob("satisfice", "there is no target: give target_loss, or target losses of the completions")
	case !j.DoTargetLossSum && targets == 0:
		return badJob("do_target_loss_sum", "each completion is compared with its target, and there is none: give target_loss, or target losses of the completions")
	case j.Satisfice && without != "":
		return badJob(without, "satisfice needs a target for every completion, and these have neither target losses of their own nor a target_loss")
	}
	return nil
}

// validateCombination refuses options that contradict each other or have no effect
// without another one.
func (j *Job) validateCombination() error {
	kind, defaults := j.Kind(), DefaultOptions()
	given := func(name string) bool { // other than by default
		o := optionNamed(name)
		return o.value(&j.Options) != o.value(&defaults)
	}
	needs := func(what, name string, names ...string) error {
		for _, n := range names {
			if given(n) {
				return badJob(n, "it is for %s: give %s, too", what, name)
			}
		}
		return nil
	}
	if j.VectorClamp != nil && j.AffineRank != nil {
		return badJob("vector_clamp", "clamp steering has no matrix of its own, and affine_rank asks for one: give one of the two")
	}
	if j.AffineRank == nil {
		if err := needs("affine steering", "affine_rank", "starting_affine_norm", "max_affine_norm"); err != nil {
			return err
		}
	}
	if kind == loader.Affine && j.DoRelativeScale {
		return badJob("do_relative_scale", "it measures vectors by the stream that they are added to, and affine_rank's matrix, which has the same lr, grows with the stream by itself: leave one of the two out")
	}
	if projects(kind) && j.StartingNorm != nil && *j.StartingNorm == 0 {
		return badJob("starting_norm", "%s steering takes the stream's part along v, and v = 0 has no direction: give a norm above 0", kind)
	}
	if j.NoiseScale == nil {
		if err := needs("noise", "noise_scale", "noise_iters", "do_tangent_space_noise", "do_noise_abl_relu", "do_antipgd"); err != nil {
			return err
		}
	}
	tangent := j.NoiseScale != nil && j.DoTangentSpaceNoise && !j.DoAntipgd
	switch {
	case tangent && projects(kind):
		return &loader.InputError{
			Message: fmt.Sprintf("do_tangent_space_noise: the tangent is the gradient at v = 0, and %s steering has none there", kind),
			Hint:    "do_tangent_space_noise: false, or do_antipgd",
		}
	case j.DoNoiseAblRelu && !tangent:
		return badJob("do_noise_abl_relu", "it is for tangent-space noise, which is off here")
	}
	if !j.DoOutputConstr {
		if err := needs("the output-constrained stage", "do_output_constr", "output_constr_lr", "max_output_constr_iters", "output_constr_objective", "melbo_layer"); err != nil {
			return err
		}
	}
	melbo := j.OutputConstrObjective == objectiveMelbo
	switch {
	case melbo && j.MelboLayer == nil:
		return badJob("melbo_layer", "output_constr_objective melbo needs the layer that it looks at")
	case !melbo && j.MelboLayer != nil:
		return badJob("melbo_layer", "it is for output_constr_objective melbo")
	case j.Optimizer == optimizerBundle && j.NoiseScale != nil:
		return badJob("optimizer", "bundle compares the losses of one step with those of the next, and noise changes them: adam does not mind")
	case j.Optimizer == optimizerBundle && j.Satisfice:
		return badJob("optimizer", "bundle takes the steps that lower the loss, and satisfice has to raise it where it is below its target: adam does not mind")
	case j.Optimizer == optimizerBundle && j.Minibatch():
		return badJob("optimizer", "bundle compares the losses of one step with those of the next, and those of a minibatch are of other prompts: adam does not mind")
	case !j.Minibatch() && given("minibatch_size"):
		return badJob("minibatch_size", "a minibatch is made of prompts, and this job has examples")
	}
	return nil
}

// recipe is the job as a job file in JSON, with every option.
func (j *Job) recipe() (string, error) {
	file := map[string]any{"shared": j.Shared, "chat": j.Chat, "system": j.System, "parse_special": j.ParseSpecial}
	for _, o := range OptionTable() {
		file[o.Name] = o.value(&j.Options)
	}
	switch {
	case j.Layers.All:
		file["layer"] = "all"
	case len(j.Layers.List) == 1:
		file["layer"] = j.Layers.List[0]
	default:
		file["layer"] = j.Layers.List
	}
	if j.Minibatch() {
		file["prompts"], file["src_completions"], file["dst_completions"] = j.Prompts, append([]string{}, j.Src...), append([]string{}, j.Dst...)
	}
	examples := make([]map[string]any, len(j.Examples))
	for i := range j.Examples {
		e := &j.Examples[i]
		examples[i] = map[string]any{"prompt": e.Prompt, "is_negative": e.Negative}
		for _, s := range e.sides() {
			examples[i][s.key] = append([]string{}, s.completions...)
			if s.targets != nil {
				examples[i][s.targetsKey] = s.targets
			}
		}
		if e.Token != nil {
			examples[i]["token"] = e.Token.String()
		}
	}
	if !j.Minibatch() {
		file["examples"] = examples
	}
	if len(j.Start) > 0 {
		start := map[string]any{}
		for layer, p := range j.Start {
			of := map[string]any{"vector": p.Vector}
			if len(p.Left) > 0 {
				of["left"], of["right"] = p.Left, p.Right
			}
			start[layer] = of
		}
		file["start"] = start
	}
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false) // for people who read <h2> in a prompt
	if err := encoder.Encode(file); err != nil {
		return "", fmt.Errorf("the recipe cannot be written: %w", err)
	}
	return strings.TrimSuffix(text.String(), "\n"), nil
}

// shorten is a text for an error message: its beginning, if it is long.
func shorten(text string) string {
	const limit = 40
	runes := []rune(text)
	if len(runes) <= limit {
		return text
	}
	return string(runes[:limit]) + "…"
}

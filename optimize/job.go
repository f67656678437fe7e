package optimize

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/llsteer/llsteer/loader"
)

// A Job is all that an optimization needs beside the model.
type Job struct {
	Options
	Layers   Layers
	Shared   bool // one vector on all layers, in place of one each
	Examples []Example
	Start    map[string]loader.Parameters // by layer, or "shared"; layers left out start at random
	Chat     bool                         // prompts are a user's turn in the model's chat template
	System   string                       // system text, with Chat

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
	if j.Context < 0 {
		return badJob("context", "expected a number of tokens, found %d", j.Context)
	}
	if len(j.Examples) == 0 {
		return &loader.InputError{Message: "examples: the job has none", Hint: "an example is a prompt with src_completions, dst_completions or both"}
	}
	targets, without := 0, ""
	for i := range j.Examples {
		at := fmt.Sprintf("examples[%d]", i)
		e := &j.Examples[i]
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
	case j.Satisfice && without != "":
		return badJob(without, "satisfice needs a target for every completion, and these have neither target losses of their own nor a target_loss")
	}
	return nil
}

// recipe is the job as a job file in JSON, with every option.
func (j *Job) recipe() (string, error) {
	file := map[string]any{"shared": j.Shared, "chat": j.Chat, "system": j.System}
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
	file["examples"] = examples
	if len(j.Start) > 0 {
		start := map[string]any{}
		for layer, p := range j.Start {
			start[layer] = map[string]any{"vector": p.Vector}
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

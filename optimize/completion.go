package optimize

import (
	"fmt"

	"github.com/llsteer/llsteer/ggmlsteer"
	"github.com/llsteer/llsteer/loader"
)

// A completion is one of the job's completions, as the engine evaluates it.
type completion struct {
	example, side, index int      // its loss is Losses[example][side][index]
	target               *float64 // its own, or the job's; nil: none
	name                 string   // for people
	sequence             ggmlsteer.Sequence
}

func (c *completion) isSrc() bool { return c.side == 0 }

// completions tokenizes the job's examples. What cannot be used is an
// *InputError with the example and the completion.
func (j *Job) completions(m model) ([]completion, error) {
	var all []completion
	for i := range j.Examples {
		e := &j.Examples[i]
		at := fmt.Sprintf("examples[%d]", i)
		prompt, err := j.promptTokens(m, e.Prompt)
		if err != nil {
			return nil, err
		}
		if len(prompt) == 0 {
			return nil, &loader.InputError{
				Message: at + ".prompt: it has no tokens",
				Hint:    "this model puts none of its own before a text, and a completion's first token needs one before it",
			}
		}
		for side, s := range e.sides() {
			for k, text := range s.completions {
				c := completion{example: i, side: side, index: k, target: j.TargetLoss}
				c.name = fmt.Sprintf("%s.%s[%d] (%q)", at, s.key, k, shorten(text))
				if s.targets != nil {
					c.target = &s.targets[k]
				}
				c.sequence.Prompt = len(prompt)
				// together with the prompt: tokens may merge where the two meet
				if c.sequence.Tokens, err = j.wholeTokens(m, e.Prompt, text); err != nil {
					return nil, err
				}
				if err := c.check(j, m); err != nil {
					return nil, err
				}
				strengths, err := j.strengths(e, &c.sequence)
				if err != nil {
					return nil, badJob(at+".token", "%v (%s)", err, c.name)
				}
				c.sequence.Vector = [][]float32{strengths}
				all = append(all, c)
			}
		}
	}
	return all, nil
}

func (j *Job) promptTokens(m model, prompt string) ([]ggmlsteer.Token, error) {
	if j.Chat {
		return m.Chat(j.System, prompt)
	}
	return m.Tokenize(prompt, false)
}

func (j *Job) wholeTokens(m model, prompt, completion string) ([]ggmlsteer.Token, error) {
	if j.Chat {
		return m.ChatCompletion(j.System, prompt, completion)
	}
	return m.Tokenize(prompt+completion, false)
}

func (c *completion) check(j *Job, m model) error {
	n := len(c.sequence.Tokens)
	if n <= c.sequence.Prompt {
		return &loader.InputError{
			Message: c.name + ": it is left without tokens",
			Hint:    fmt.Sprintf("prompt and completion together have %d tokens, the prompt alone %d; llsteer tokenize shows them", n, c.sequence.Prompt),
		}
	}
	limit, whose := j.Context, "the context is"
	if limit == 0 {
		limit, whose = m.Info().TrainContext, "the model's training context is"
	}
	if n > limit {
		return &loader.InputError{Message: fmt.Sprintf("%s: prompt and completion have %d tokens, and %s %d", c.name, n, whose, limit)}
	}
	return nil
}

// strengths are the factors of the vector at each token of a sequence: 0 where the
// example's mask leaves the token out, −1 in negative examples.
func (j *Job) strengths(e *Example, s *ggmlsteer.Sequence) ([]float32, error) {
	steered := func(int) bool { return true }
	switch {
	case j.OnlyHookPrompt:
		steered = func(i int) bool { return i < s.Prompt }
	case e.Token != nil:
		mask, err := e.Token.mask(len(s.Tokens))
		if err != nil {
			return nil, err
		}
		steered = func(i int) bool { return mask[i] }
	}
	strength := float32(1)
	if e.Negative {
		strength = -1
	}
	factors := make([]float32, len(s.Tokens))
	for i := range factors {
		if steered(i) {
			factors[i] = strength
		}
	}
	return factors, nil
}

package optimize

import (
	"fmt"
	"slices"

	"github.com/llsteer/llsteer/ggmlsteer"
	"github.com/llsteer/llsteer/loader"
)

// A completion is one of the job's completions, as the engine evaluates it.
type completion struct {
	id                   int      // among all of the job
	example, side, index int      // its loss is Losses[example][side][index]
	target               *float64 // its own, or the job's; nil: none
	name                 string   // for people
	tokens               []ggmlsteer.Token
	prompt               int       // how many of them are the prompt's
	mask                 []float32 // 1 at the tokens that are steered, 0 at the others
	negative             bool      // steered with −v
}

func (c *completion) isSrc() bool { return c.side == 0 }

// completions tokenizes the job's examples. What cannot be used is an
// *InputError with the example and the completion.
func (j *Job) completions(m model) ([]completion, error) {
	var all []completion
	for i, e := range j.examples() {
		at := j.exampleName(i)
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
				c := completion{id: len(all), example: i, side: side, index: k, target: j.TargetLoss, prompt: len(prompt), negative: e.Negative}
				c.name = fmt.Sprintf("%s.%s[%d] (%q)", at, s.key, k, shorten(text))
				if s.targets != nil {
					c.target = &s.targets[k]
				}
				// together with the prompt: tokens may merge where the two meet
				if c.tokens, err = j.wholeTokens(m, e.Prompt, text); err != nil {
					return nil, err
				}
				if err := c.check(j, m); err != nil {
					return nil, err
				}
				if c.mask, err = j.mask(e, &c); err != nil {
					return nil, badJob(at+".token", "%v (%s)", err, c.name)
				}
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
	return m.Tokenize(prompt, j.ParseSpecial)
}

func (j *Job) wholeTokens(m model, prompt, completion string) ([]ggmlsteer.Token, error) {
	if j.Chat {
		return m.ChatCompletion(j.System, prompt, completion)
	}
	return m.Tokenize(prompt+completion, j.ParseSpecial)
}

func (c *completion) check(j *Job, m model) error {
	n := len(c.tokens)
	if n <= c.prompt {
		return &loader.InputError{
			Message: c.name + ": it is left without tokens",
			Hint:    fmt.Sprintf("prompt and completion together have %d tokens, the prompt alone %d; llsteer tokenize shows them", n, c.prompt),
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

// mask tells the tokens of a completion that are steered.
func (j *Job) mask(e *Example, c *completion) ([]float32, error) {
	steered := func(int) bool { return true }
	switch {
	case j.OnlyHookPrompt:
		steered = func(i int) bool { return i < c.prompt }
	case e.Token != nil:
		mask, err := e.Token.mask(len(c.tokens))
		if err != nil {
			return nil, err
		}
		steered = func(i int) bool { return mask[i] }
	}
	factors := make([]float32, len(c.tokens))
	for i := range factors {
		if steered(i) {
			factors[i] = 1
		}
	}
	return factors, nil
}

// sequences are the completions for a session. With sets each has parameters of its own:
// the operation has those of all, and a completion's factors of the others' are 0.
func (j *Job) sequences(completions []completion, sets bool) []ggmlsteer.Sequence {
	vectors, rank := j.shape()
	sequences := make([]ggmlsteer.Sequence, len(completions))
	for i, c := range completions {
		signed := c.mask
		if c.negative {
			signed = make([]float32, len(c.mask))
			for k, factor := range c.mask {
				signed[k] = -factor
			}
		}
		s := ggmlsteer.Sequence{Tokens: c.tokens, Prompt: c.prompt}
		own, n := 0, 1
		if sets {
			own, n = i, len(completions)
		}
		for set := range n {
			vector, row := signed, c.mask
			if set != own {
				vector = make([]float32, len(c.mask))
				row = vector
			}
			s.Vector = append(s.Vector, slices.Repeat([][]float32{vector}, vectors)...)
			s.Matrix = append(s.Matrix, slices.Repeat([][]float32{row}, rank)...)
		}
		sequences[i] = s
	}
	return sequences
}

package main

import (
	"fmt"
	"math"
	"strings"

	"github.com/llsteer/llsteer/ggmlsteer"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func (p *program) search() *cobra.Command {
	var model modelFlags
	var steer, prompts, contrasts []string
	var precision precision
	var o ggmlsteer.SearchOptions
	cmd := &cobra.Command{
		Use:   "search -m MODEL [-s FILE[:STRENGTH]]... -p PROMPT",
		Short: "likely completions, by beam search",
		Long: `Searches the completions that the model finds likely after a prompt. In each round
all beams with each token of the vocabulary behind them compete, and the best
stay; a beam that ended its text stays as it is. What is compared is the
probability of the last token or, with --total, of all tokens together.`,
		Example: `  llsteer optimize -m demo demo -o spanish.gguf
  llsteer search -m demo -s spanish.gguf --total -p "To print the page,"
  llsteer search -m demo -p "To print the page," --contrast "Para imprimir la página,"`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			prompt, err := p.onlyText("--prompt", prompts)
			if err != nil {
				return err
			}
			contrast := ""
			if len(contrasts) > 0 {
				if contrast, err = p.onlyText("--contrast", contrasts); err != nil {
					return err
				}
			}
			m, active, err := p.openSteered(cmd.Context(), &model, steer, nil)
			if err != nil {
				return err
			}
			defer m.Close()
			tokens, err := model.searchTokens(m, "the prompt", prompt, o.Further)
			if err != nil {
				return err
			}
			if len(contrasts) > 0 {
				if o.Contrast, err = model.searchTokens(m, "the contrast", contrast, o.Further); err != nil {
					return err
				}
			}
			found, err := m.Search(cmd.Context(), tokens, o, precision.or(ggmlsteer.F32), active...)
			if err != nil {
				return err
			}
			return p.printCompletions(m, found)
		},
	}
	addFlags(cmd, "Texts (@FILE reads a file, @- standard input, @@ is an @)", func(flags *pflag.FlagSet) {
		flags.StringArrayVarP(&prompts, "prompt", "p", nil, "`TEXT` before the completions (required)")
		flags.StringArrayVar(&contrasts, "contrast", nil, "second prompt `TEXT`, whose probabilities are subtracted (default none)")
	})
	addFlags(cmd, "Steering", func(flags *pflag.FlagSet) { addSteer(flags, &steer) })
	addFlags(cmd, "Search", func(flags *pflag.FlagSet) {
		countVar(flags, &o.Beams, "beams", "k", 5, 1, math.MaxInt32, "beams: completions that are kept in each round")
		countVar(flags, &o.Further, "further", "n", 5, 0, math.MaxInt32, "tokens of a completion after its first")
		flags.BoolVar(&o.Total, "total", false, "compare the product of all tokens' probabilities, not the last one's")
		flags.BoolVar(&o.Reverse, "reverse", false, "search the least likely completions")
		numberVar(flags, &o.Coldness, "coldness", 1, math.SmallestNonzeroFloat64, math.MaxFloat64, "factor of the logits before the softmax")
		addPrecision(flags, &precision, precisionF32)
	})
	model.add(cmd)
	return cmd
}

// searchTokens are those of a text with room for a completion behind it.
func (f *modelFlags) searchTokens(m *ggmlsteer.Model, what, text string, further int) ([]ggmlsteer.Token, error) {
	tokens, err := f.promptTokens(m, text)
	if err != nil {
		return nil, err
	}
	if limit := f.context(m); len(tokens)+1 > limit-further {
		return nil, badInput("", "%s has %d tokens and a completion up to %d, and the context is %d", what, len(tokens), further+1, limit)
	}
	return tokens, nil
}

func (p *program) printCompletions(m *ggmlsteer.Model, found []ggmlsteer.Completion) error {
	type completion struct {
		Text   string            `json:"text"`
		Tokens []ggmlsteer.Token `json:"tokens"`
		Probs  []float64         `json:"probs"`
	}
	all := make([]completion, len(found))
	for i, c := range found {
		all[i] = completion{m.Text(c.Tokens, false), c.Tokens, c.Probs}
	}
	if p.json {
		return p.printJSON(map[string][]completion{"completions": all})
	}
	var b strings.Builder
	for _, c := range all {
		fmt.Fprintf(&b, "%q\n", c.Text)
		for i, prob := range c.Probs {
			fmt.Fprintf(&b, "%12.6f  %q\n", prob, m.Text(c.Tokens[i:i+1], true))
		}
	}
	return p.print(b.String())
}

package main

import (
	"fmt"
	"math"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/llsteer/llsteer/ggmlsteer"
)

func (p *program) logprob() *cobra.Command {
	var model modelFlags
	var steer, prompts, completions []string
	var coldness float64
	var complement bool
	var precision precision
	cmd := &cobra.Command{
		Use:   "logprob -m MODEL [-s FILE[:STRENGTH]]... -p PROMPT -c COMPLETION",
		Short: "log-probability of a completion, steered or not",
		Long: `Prints the natural logarithm of the probability of a completion after a prompt, as
a sum and for each token. Prompt and completion are tokenized together.`,
		Example: `  llsteer optimize -m demo demo -o spanish.gguf
  llsteer logprob -m demo -s spanish.gguf -p "To print the page," -c " pulse el botón"`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			prompt, err := p.onlyText("--prompt", prompts)
			if err != nil {
				return err
			}
			completion, err := p.onlyText("--completion", completions)
			if err != nil {
				return err
			}
			m, active, err := p.openSteered(cmd.Context(), &model, steer, nil)
			if err != nil {
				return err
			}
			defer m.Close()
			promptTokens, err := model.promptTokens(m, prompt)
			if err != nil {
				return err
			}
			tokens, err := model.completionTokens(m, prompt, completion)
			if err != nil {
				return err
			}
			if len(tokens) <= len(promptTokens) {
				return badInput("", "the completion %q has no tokens of its own: with the prompt it gives %d, the prompt alone %d", completion, len(tokens), len(promptTokens))
			}
			if err := model.fits(m, "the prompt with its completion", len(tokens)); err != nil {
				return err
			}
			probs, err := m.Logprobs(cmd.Context(), tokens, len(promptTokens), coldness, precision.or(ggmlsteer.F32), active...)
			if err != nil {
				return err
			}
			type token struct {
				ID      int32   `json:"id"`
				Text    string  `json:"text"`
				Logprob float64 `json:"logprob"`
			}
			var result struct {
				Logprob float64 `json:"logprob"`
				Tokens  []token `json:"tokens"`
			}
			for i, id := range tokens[len(promptTokens):] {
				t := token{id, m.Text([]int32{id}, true), probs[i].Log}
				if complement {
					t.Logprob = probs[i].LogComplement
				}
				if math.IsNaN(t.Logprob) || math.IsInf(t.Logprob, 0) {
					return fmt.Errorf("the logarithm at token %d of the completion, %q, is %v: the probability is 0 to double precision", i, t.Text, t.Logprob)
				}
				result.Tokens = append(result.Tokens, t)
				result.Logprob += t.Logprob
			}
			if p.json {
				return p.printJSON(result)
			}
			var b strings.Builder
			for _, t := range result.Tokens {
				fmt.Fprintf(&b, "%12.6f  %q\n", t.Logprob, t.Text)
			}
			fmt.Fprintf(&b, "%12.6f  in all, nats\n", result.Logprob)
			return p.print(b.String())
		},
	}
	addFlags(cmd, "Texts (@FILE reads a file, @- standard input, @@ is an @)", func(flags *pflag.FlagSet) {
		flags.StringArrayVarP(&prompts, "prompt", "p", nil, "`TEXT` before the completion (required)")
		flags.StringArrayVarP(&completions, "completion", "c", nil, "`TEXT` whose probability it is (required)")
	})
	addFlags(cmd, "Probability", func(flags *pflag.FlagSet) {
		addSteer(flags, &steer)
		numberVar(flags, &coldness, "coldness", 1, math.SmallestNonzeroFloat64, math.MaxFloat64, "factor of the logits before the softmax")
		flags.BoolVar(&complement, "complement", false, "log(1 − p) of each token in place of log p")
		addPrecision(flags, &precision, precisionF32)
	})
	model.add(cmd)
	return cmd
}

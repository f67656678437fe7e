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
	var complement, asProbs bool
	var precision precision
	cmd := &cobra.Command{
		Use:   "logprob -m MODEL [-s FILE[:STRENGTH]]... -p PROMPT -c COMPLETION",
		Short: "log-probability of a completion, steered or not",
		Long: `Prints the natural logarithm of the probability of a completion after a prompt, as
a sum and for each token; with --probs the probabilities themselves, and their
product. Prompt and completion are tokenized together.`,
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
				ID   int32  `json:"id"`
				Text string `json:"text"`
				probability
			}
			var result struct {
				probability
				Tokens []token `json:"tokens"`
			}
			format, sum := "%12.6f  ", 0.0
			if asProbs {
				format = "%12.6g  "
			}
			var b strings.Builder
			for i, id := range tokens[len(promptTokens):] {
				log, text := probs[i].Log, m.Text([]int32{id}, true)
				if complement {
					log = probs[i].LogComplement
				}
				if math.IsNaN(log) || math.IsInf(log, 0) && !asProbs {
					return fmt.Errorf("the logarithm at token %d of the completion, %q, is %v: the probability is 0 to double precision", i, text, log)
				}
				sum += log
				t := token{id, text, newProbability(log, asProbs)}
				result.Tokens = append(result.Tokens, t)
				fmt.Fprintf(&b, format+"%q\n", t.value(), text)
			}
			result.probability = newProbability(sum, asProbs)
			if p.json {
				return p.printJSON(result)
			}
			fmt.Fprintf(&b, format+"%s\n", result.value(), map[bool]string{false: "in all, nats", true: "the product"}[asProbs])
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
		flags.BoolVar(&asProbs, "probs", false, "probabilities in place of their logarithms, and the product in place of the sum")
		addPrecision(flags, &precision, precisionF32)
	})
	model.add(cmd)
	return cmd
}

// A probability is the logarithm of a probability, or with --probs the probability.
type probability struct {
	Logprob *float64 `json:"logprob,omitempty"`
	Prob    *float64 `json:"prob,omitempty"`
}

func newProbability(log float64, asProb bool) probability {
	if asProb {
		p := math.Exp(log)
		return probability{Prob: &p}
	}
	return probability{Logprob: &log}
}

func (p probability) value() float64 {
	if p.Prob != nil {
		return *p.Prob
	}
	return *p.Logprob
}

// The AI SDK against a node, by chat and by responses: prints what came back as one JSON document.
// Arguments: the folder of the modules. Environment: OPENAI_BASE_URL, OPENAI_API_KEY.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const resolve = createRequire(`${process.argv[2]}/`).resolve;
const load = (name) => import(pathToFileURL(resolve(name)).href);
const { embedMany, generateObject, generateText, isStepCount, stepCountIs, streamText, tool } =
  await load("ai");
const { createOpenAICompatible } = await load("@ai-sdk/openai-compatible");
const { createOpenAI } = await load("@ai-sdk/openai");
const { z } = await load("zod");

const given = { baseURL: process.env.OPENAI_BASE_URL, apiKey: process.env.OPENAI_API_KEY };
const box = createOpenAICompatible({
  name: "box",
  ...given,
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const official = createOpenAI(given);
const look = tool({
  description: "Looks at a place",
  inputSchema: z.object({ at: z.string() }),
  execute: async ({ at }) => `the note at ${at}`,
});
const stopWhen = (isStepCount ?? stepCountIs)(4);
const schema = z.object({ word: z.string() });
const found = {};

for (const [name, model, options] of [
  ["chat", box.chatModel("echo"), { box: { reasoningEffort: "high" } }],
  ["responses", official.responses("echo"), { openai: { store: false, forceReasoning: true, reasoningEffort: "high" } }],
]) {
  const asked = { model, maxRetries: 0, providerOptions: options };
  const task = await generateText({ ...asked, prompt: "look at b", tools: { look }, stopWhen });
  const stream = streamText({ ...asked, prompt: "hello" });
  let text = "";
  for await (const delta of stream.textStream) text += delta;
  const object = await generateObject({ ...asked, schema, prompt: '{"word": "a"}' });
  found[name] = {
    task: task.text,
    steps: task.steps.map((step) => step.finishReason),
    results: task.steps.flatMap((step) => step.toolResults.map((result) => result.output)),
    stream: text,
    reasoning: await stream.reasoningText,
    usage: (await stream.usage).outputTokens,
    object: object.object,
  };
}
const noted = await generateText({
  model: official.responses("echo"),
  maxRetries: 0,
  providerOptions: { openai: { store: false } },
  prompt: "write",
  tools: { write: official.tools.customTool({ name: "write", format: { type: "text" } }) },
});
found.custom = noted.toolCalls.map((call) => call.input);
const vectors = await embedMany({
  model: box.embeddingModel("letters"),
  values: ["a", "b"],
  maxRetries: 0,
});
found.embeddings = vectors.embeddings.map((vector) => vector.length);
process.stdout.write(JSON.stringify(found));

// What each code of docs/wire.md means to the person who asked.

const WORDS = {
  bad_image: "An image cannot be read.",
  image_too_large: "An image is too large for this service.",
  missing_input: "Something that this score needs was not given.",
  invalid_item: "What was given makes no sense to the scorer.",
  no_reference_face: "A reference shows no face.",
  scorer_failed: "The scorer failed on this image.",
  non_finite: "The scorer gave no finite number.",
  judge_budget: "The judge that scores has spent what it may.",
  replica_lost: "The scorer's process died meanwhile. Try again.",
  unavailable: "The scorer is away just now. Try again.",
  overloaded: "The service is busy. Try again.",
  deadline_exceeded: "It took too long. Try again.",
  internal: "The service failed.",
  invalid_request: "The service cannot make sense of the request.",
  unknown_scorer: "The service does not serve this scorer or reward.",
  payload_too_large: "The request is too large for this service.",
  unsupported_media_type: "The service does not read this kind of request.",
  unauthenticated: "The service asks for a token that it knows.",
  permission_denied: "This token may not do that.",
  unknown_image: "The service no longer keeps an image.",
  network: "The service does not answer.",
  cut_off: "The answer was cut off.",
  stopped: "Stopped.",
  unreadable_file: "A chosen file cannot be read.",
};

export const inWords = (code) => WORDS[code] ?? "The service refused.";
